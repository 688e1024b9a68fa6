"""The detectors on recorded finetunes of a real model: what they say, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from forcegauge.detectors import Detector
from forcegauge.phase import pushes_down
from tests.benchmarks import alarms_page
from tests.benchmarks.calibration import Run, recorded
from tests.benchmarks.contenders import SICK, STREAK, judgements, persists, verdict
from tests.benchmarks.results import results

RUNS = recorded()
HEALTHY = [run for run in RUNS if run.outcome == "healthy"]


LEARNED_BY_HEART = "sft-tiny"
"""SFT on four pairs, over and over: harmed, but by nothing that a verdict is for."""


def final(run: Run) -> str:
    return judgements(run)[-1][1].verdict


def names(runs: list[Run]) -> list[str]:
    return [run.name for run in runs]


def test_there_are_sixteen_runs_of_every_kind() -> None:
    assert len(RUNS) >= 16
    assert {run.outcome for run in RUNS} == {"healthy", "harmed", "repeating"}
    assert {run.config["loss"] for run in RUNS} >= {"sft", "dpo", "ipo", "sppo", "grpo"}


@pytest.mark.parametrize("run", RUNS, ids=names(RUNS))
def test_only_a_squeeze_that_healed_alarms_a_healthy_run(run: Run) -> None:
    alarmed = any(judged.verdict in SICK for _, judged in judgements(run))
    turned = run.turn is not None and run.name != LEARNED_BY_HEART
    assert alarmed == (turned or run.name == "sppo-squeeze")


@pytest.mark.parametrize("run", RUNS, ids=names(RUNS))
def test_a_run_that_ends_sick_is_not_called_healthy_in_between(run: Run) -> None:
    said = [judged.verdict in SICK for _, judged in judgements(run)]
    assert not said[-1] or all(said[said.index(True) :])


@pytest.mark.parametrize("run", RUNS, ids=names(RUNS))
def test_the_final_verdict_is_sick_where_held_out_behaviour_turned(run: Run) -> None:
    turned = run.turn is not None and run.name != LEARNED_BY_HEART
    assert (final(run) in SICK) == turned


def test_answers_learned_by_heart_press_on_other_prompts_early() -> None:
    run = next(run for run in RUNS if run.name == LEARNED_BY_HEART)
    on = [step for step, judged in judgements(run) if judged.alarms["hallucination_pressure"].on]
    assert on[0] == 8
    assert run.turn is not None
    assert on[0] < run.turn


@pytest.mark.parametrize("run", RUNS, ids=names(RUNS))
def test_half_the_probes_give_the_same_verdict_unless_the_run_ends_within_a_streak(
    run: Run,
) -> None:
    alarm, later = verdict(run), STREAK * (run.probes[-1]["step"] - run.probes[-2]["step"])
    too_late = alarm is not None and alarm + later > run.length
    assert final(run.thinned(2)) == final(run) or too_late


@pytest.mark.parametrize("run", HEALTHY, ids=names(HEALTHY))
def test_gaps_and_values_that_are_not_finite_raise_no_alarm(run: Run) -> None:
    broken = []
    for place, probe in enumerate(run.probes):
        signals = dict(probe["signals"])
        for spoiled, name in enumerate(sorted(signals)):
            if (place + spoiled) % 3 == 0:
                signals[name] = math.nan
            elif (place + spoiled) % 3 == 1:
                del signals[name]
        broken.append({**probe, "signals": signals})
    assert not any(j.verdict in SICK for _, j in judgements(replace(run, probes=tuple(broken))))


@pytest.mark.parametrize("run", RUNS, ids=names(RUNS))
def test_a_resumed_run_is_judged_as_one_that_was_not_interrupted(run: Run) -> None:
    resumed = Detector(0, pushes_down(run.config["loss"].replace("both", "sft")))
    half = len(run.probes) // 2
    for probe in run.probes[1:half]:
        resumed.update(probe["step"], probe["signals"], probe["noise"])
    repeated = run.probes[half:]
    last = [resumed.update(p["step"], p["signals"], p["noise"]) for p in repeated][-1]
    assert last == judgements(run)[-1][1]


def test_the_page_about_the_alarms_is_that_of_the_table_and_the_records() -> None:
    assert alarms_page.page(RUNS, results(RUNS)) == alarms_page.PAGE.read_text(), (
        "run `make bench-alarms`"
    )


def test_an_alarm_needs_its_streak() -> None:
    series = [(1, 2.0), (2, 0.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert persists(series, 1.0) == 4
    assert persists(series, 2.0) is None
