"""The screen: it fits, it says what is so without colour, and it shows text as text."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from forcegauge.detectors import AlarmState
from forcegauge.watching.following import Follower
from forcegauge.watching.screen import RAMP, screen, spark
from forcegauge.watching.view import Series, View, record_view
from tests.synthetic_run import two_phase_run

SIZES = [(80, 24), (140, 40), (60, 20), (80, 12), (40, 10), (200, 60)]


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, View]:
    """The last view of each phase."""
    follower = Follower(two_phase_run(tmp_path_factory.mktemp("run")))
    found = [record_view(course) for course in follower.read()]
    return {view.phase: view for view in found}


def drawn(view: View, width: int = 80, height: int = 24, now: float | None = None) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, height=height, color_system=None).print(
        screen(view, width, height, now)
    )
    return file.getvalue().rstrip("\n").split("\n")


def text(view: View, width: int = 80, height: int = 24, now: float | None = None) -> str:
    return "\n".join(drawn(view, width, height, now))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_it_fits_into_the_terminal(
    views: dict[str, View], phase: str, width: int, height: int
) -> None:
    rows = drawn(views[phase], width, height)
    assert len(rows) <= height
    assert max(map(len, rows)) <= width


def test_80_by_24_has_verdict_evidence_advice_courses_alarms_and_cost(
    views: dict[str, View],
) -> None:
    rows = text(views["dpo"])
    assert "▼ SQUEEZING since step 26" in rows
    assert "squeeze beyond sharpening +2.30 nats" in rows
    assert "→ For the next run: Stop before the chosen answers fall too." in rows
    assert "The last healthy checkpoint is out/sft/checkpoint-20, of step 20." in rows
    assert "rejected           -6.96" in rows
    assert "untrained answers  -1.96" in rows
    assert "argmax there       +0.60" in rows
    assert "squeeze index      +2.55" in rows
    assert "force down" in rows
    assert "Alarms on: squeezing (6 probes), argmax_mass_spike (4 probes)" in rows
    assert "displacement 1 of 3" in rows
    assert "A probe takes 0.8 s" in rows
    assert "ended: finished" in rows


def test_a_low_terminal_keeps_verdict_and_advice(views: dict[str, View]) -> None:
    rows = text(views["dpo"], 80, 14)
    assert "SQUEEZING since step 26" in rows
    assert "lower the learning rate" in rows
    assert "squeeze index" in rows
    assert "random_words" not in rows


def test_a_high_one_has_every_alarm_with_its_size(views: dict[str, View]) -> None:
    rows = drawn(views["dpo"], 140, 40)
    assert sum(" alarm above " in row or " alarm below " in row for row in rows) == 10
    assert any("entropy_collapse" in row and "40%   alarm below 20%" in row for row in rows)


def test_a_calm_verdict_does_not_hide_an_alarm(views: dict[str, View]) -> None:
    assert "LEARNING since step 3, but an alarm is on" in text(views["sft"])


def test_while_it_runs_the_advice_is_for_now(views: dict[str, View]) -> None:
    assert "→ Stop before the chosen answers fall too." in text(replace(views["dpo"], ended=None))


def test_small_forces_keep_their_size_and_the_columns(views: dict[str, View]) -> None:
    forces = {
        name: Series([20, 44], [0.2, 0.00054]) for name in ("force_up_norm", "force_down_norm")
    }
    view = replace(views["dpo"], signals={**views["dpo"].signals, **forces})
    (row,) = [row for row in drawn(view) if row.startswith("force up")]
    assert row.startswith("force up           5e-04 ▇")
    assert row.index("force down") == 41


def test_a_running_one_says_when_the_next_probe_comes(views: dict[str, View]) -> None:
    running = replace(views["sft"], train_step=21)
    assert "next at about step 24, in 3 steps" in text(running)
    assert "next at" not in text(views["dpo"])


@pytest.mark.parametrize(
    ("silent", "said"),
    [(12.0, "last probe 12 s ago"), (59.0, "last probe 59 s ago"), (600.0, "silent for 10 min")],
)
def test_silence_is_told_when_it_is_longer_than_the_usual_pause(silent: float, said: str) -> None:
    view = View(name="r", step=1, verdict="learning", heard=1000.0, spacing=10.0)
    assert said in text(view, now=1000.0 + silent)


def test_a_slow_run_is_not_called_silent() -> None:
    view = View(name="r", step=1, verdict="learning", heard=1000.0, spacing=900.0)
    assert "last probe 50 min ago" in text(view, now=4000.0)


def test_before_the_first_probe_it_says_so() -> None:
    assert "NOTHING PROBED YET" in text(View(name="r", phase="dpo"))


def test_escapes_and_directions_are_shown_as_text() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202egpj\nnew line [bold]not markup[/]"
    states = [AlarmState(evil, 1.0, 0.5, 3, 3)]
    view = View(
        name=evil,
        phase=evil,
        model=evil,
        step=1,
        verdict=evil,
        evidence=evil,
        advice=evil,
        checkpoint=evil,
        changes={evil: Series([0, 1], [0.0, 1.0])},
        alarms=states,
        ended=evil,
        notes=[evil],
    )
    for size in ((80, 60), (80, 24), (140, 60)):
        rows = text(view, *size)
        assert not {"\x1b", "\x07", "\u202e"} & set(rows)
        assert "⟨U+001B⟩" in rows
        assert "[bold]not markup[/]" in rows


def test_wide_letters_do_not_break_the_columns() -> None:
    from rich.cells import cell_len

    view = View(
        name="名前" * 60, step=1, verdict="learning", changes={"言葉" * 9: Series([1], [1.0])}
    )
    assert all(cell_len(row) <= 80 for row in drawn(view))


def test_a_spark_goes_over_steps_not_probes() -> None:
    series = Series([0, 1, 2, 3, 10], [0.0, 1.0, 1.0, 1.0, 0.0])
    assert spark(series, 10) == f"{RAMP[-1] * 9}{RAMP[0]}"


def test_a_spark_of_noise_is_flat_and_zero_is_on_its_scale() -> None:
    assert len(set(spark(Series([0, 1, 2], [0.0, 0.01, -0.01]), 9))) == 1
    assert set(spark(Series([0, 1], [2.0, 2.1]), 4)) == {RAMP[-1]}


def test_a_spark_of_nothing_is_empty() -> None:
    assert spark(Series(), 5) == "     "
    assert spark(Series([0, 1], [None, None]), 5) == "     "


def test_without_colour_the_words_stay(
    views: dict[str, View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True)
    console.print(screen(views["dpo"], 80, 24))
    assert "SQUEEZING" in file.getvalue()
    assert "\x1b[31" not in file.getvalue()
    assert "\x1b[1;31" not in file.getvalue()


def test_it_is_drawn_for_a_folder_of_its_own(tmp_path: Path) -> None:
    two_phase_run(tmp_path)
    *_, course = Follower(tmp_path).read()
    assert "SQUEEZING" in text(record_view(course))
