"""When probes come and how large they are, on a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from forcegauge.clocks import Clock, Training
from forcegauge.pace import Cost, Pace


@dataclass
class Run:
    """A training with made-up durations: what it and its probes took, in seconds."""

    pace: Pace
    whole: float
    step: float = 1.0
    reading: float = 0.0
    now: float = 0.0
    trained: float = 0.0
    ours: float = 0.0
    probes: list[tuple[int, int]] = field(default_factory=list)

    def train(self, last: int, pause: Callable[[int], float] = lambda _: 0.0) -> None:
        self.pace.begin(0)
        self.tick(0, observed=False)
        for step in range(1, last + 1):
            observed = (step - 1) % self.pace.observed_every == 0
            self.now += self.step
            self.trained += self.step
            if observed:
                with self.pace.reading:
                    self.now += self.reading
                self.ours += self.reading
            self.tick(step, observed=observed)
            self.now += pause(step)

    def tick(self, step: int, *, observed: bool) -> None:
        self.pace.told(step, observed=observed)
        if not self.pace.due(step, last=False):
            return
        parts = self.pace.parts
        self.probes.append((step, parts))
        seconds = self.whole / parts
        with self.pace.ours:
            self.now += seconds
            self.pace.spent(step, seconds, 0, Cost(self.whole))
        self.ours += seconds

    def late(self) -> list[tuple[int, int]]:
        return [each for each in self.probes if each[0] >= 50]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def make(whole: float, *, budget: float | None = 0.01, most: int = 8, **how: Any) -> Run:
        run = Run(Pace(50, budget, most), whole, **how)
        monkeypatch.setattr(time, "monotonic", lambda: run.now)
        return run

    return make


def test_a_pass_that_fits_is_whole_at_every_n_steps(begin: Callable[..., Run]) -> None:
    run = begin(0.4)
    run.train(300)
    early = (0, 1, 2, 4, 8, 16, 32)
    assert run.probes == [(step, 1) for step in (*early, 100, 150, 200, 250, 300)]


def test_a_larger_pass_is_cut_into_parts_before_it_is_spaced(begin: Callable[..., Run]) -> None:
    run = begin(1.9)
    run.train(300)
    assert run.late() == [(step, 4) for step in (100, 150, 200, 250, 300)]


def test_what_is_too_large_in_the_smallest_parts_is_spaced_too(begin: Callable[..., Run]) -> None:
    run = begin(8.0)
    run.train(1000)
    assert {parts for _, parts in run.late()} == {8}
    steps = [step for step, _ in run.late()]
    assert {later - step for step, later in pairwise(steps)} == {100}


def test_few_probes_are_not_cut(begin: Callable[..., Run]) -> None:
    run = begin(1.9, most=1)
    run.train(600)
    assert run.late() == [(step, 1) for step in (250, 450)]


def test_without_a_budget_nothing_is_cut_or_spaced(begin: Callable[..., Run]) -> None:
    run = begin(100.0, budget=None)
    run.train(200)
    assert run.late() == [(step, 1) for step in (50, 100, 150, 200)]


@pytest.mark.parametrize("whole", [0.3, 1.0, 3.3, 9.0, 40.0])
@pytest.mark.parametrize("step", [0.02, 1.0, 7.0])
def test_the_share_after_the_early_probes_is_the_budget_at_most(
    begin: Callable[..., Run], whole: float, step: float
) -> None:
    run = begin(whole, step=step)
    run.train(40)
    early, trained = run.ours, run.trained
    assert len(run.probes) <= 1 + 6, "the early probes are bounded in number"
    run = begin(whole, step=step)
    run.train(20_000)
    late, since = run.ours - early, run.trained - trained
    assert late <= 0.0101 * since
    ratio = run.pace.overhead_ratio
    assert ratio is not None
    assert ratio == pytest.approx(late / (since + late), rel=0.05, abs=1e-6)


def test_reading_forces_counts_and_is_spaced_to_its_share(begin: Callable[..., Run]) -> None:
    run = begin(0.5, reading=0.1)
    run.train(4000)
    assert run.pace.observed_every == 40
    assert run.ours - 7 * 0.5 <= 0.0105 * run.trained
    ratio = run.pace.overhead_ratio
    assert ratio is not None
    assert ratio == pytest.approx(0.0025 + 0.005, rel=0.1)


def test_an_evaluation_of_ten_minutes_is_no_training_time(begin: Callable[..., Run]) -> None:
    run = begin(1.9)
    run.train(600, pause=lambda step: 600.0 * (step % 100 == 0))
    assert run.late() == [(step, 4) for step in range(100, 601, 50)]
    ratio = run.pace.overhead_ratio
    assert ratio is not None
    assert ratio == pytest.approx(1.9 / 4 / 50, rel=0.1)


def test_long_steps_that_come_regularly_are_training_time() -> None:
    training = Training()
    for step in range(101):
        now = 20.0 * (step // 4) + 2.0 * (step - step // 4)
        training.add(step, now, observed=False)
    assert training.step_seconds == pytest.approx((20 + 3 * 2) / 4, rel=0.15)


def test_one_probe_that_hung_does_not_blind_the_run(begin: Callable[..., Run]) -> None:
    run = begin(0.4)
    run.train(100)
    run.whole = 300.0
    run.now += run.step * 50
    run.tick(150, observed=False)
    run.whole = 0.4
    assert run.pace.due(200, last=False)


def test_the_last_probe_is_whole_and_taken_again_after_a_part(begin: Callable[..., Run]) -> None:
    run = begin(1.9)
    run.train(100)
    assert run.probes[-1] == (100, 4)
    assert run.pace.due(100, last=True)
    assert run.pace.parts == 1
    run.pace.spent(100, 1.9, 0)
    assert not run.pace.due(100, last=True)


def test_a_step_count_told_twice_or_too_high_is_no_step_of_nothing() -> None:
    training = Training()
    for step, now in ((0, 0.0), (2, 4.0), (2, 5.0), (4, 9.0)):
        training.add(step, now, observed=True)
    assert training.seconds == 8.0
    assert training.observed == 2


def test_a_clock_counts_once_where_it_is_entered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock()
    with clock:
        now[0] = 1.0
        with clock:
            now[0] = 3.0
        assert clock.seconds == 3.0
    now[0] = 9.0
    assert clock.seconds == 3.0
