"""Early probes are dense, later ones regular, and all later ones within the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forcegauge.schedule import Schedule


def steps(schedule: Schedule, last: int, probe: float = 0.0, step: float = 1.0) -> list[int]:
    found = [0]
    while found[-1] < last:
        found.append(schedule.next(found[-1], probe, step))
    return found


def test_early_probes_double_until_they_are_every_apart() -> None:
    assert steps(Schedule(10), 40) == [0, 1, 2, 4, 8, 10, 20, 30, 40]


def test_every_step_can_be_asked_for() -> None:
    assert steps(Schedule(1), 4) == [0, 1, 2, 3, 4]


def test_a_probe_that_costs_too_much_stretches_the_spacing_to_the_budget() -> None:
    schedule = Schedule(10, budget=0.01)
    assert schedule.next(100, probe_seconds=1.0, step_seconds=1.0) == 200
    assert schedule.stretched(1.0, 1.0)
    assert not schedule.stretched(0.05, 1.0)


def test_early_probes_are_exempt_from_the_budget() -> None:
    assert Schedule(50, budget=0.01).next(2, probe_seconds=9.0, step_seconds=0.1) == 4


@given(
    every=st.integers(1, 200),
    done=st.integers(0, 10_000),
    probe=st.floats(0, 100),
    step=st.floats(0.01, 10),
)
def test_the_next_probe_is_later_and_its_share_of_time_within_the_budget(
    every: int, done: int, probe: float, step: float
) -> None:
    upcoming = Schedule(every, budget=0.01).next(done, probe, step)
    assert upcoming > done
    if upcoming % every == 0 and (1 << done.bit_length()) >= every:
        assert probe <= 0.01 * step * (upcoming - done) * (1 + 1e-9)
