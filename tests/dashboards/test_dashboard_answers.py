"""What the dashboards' longer queries answer, evaluated by promtool on made-up runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashboards.fleet import ALL_VERDICTS, WORST
from dashboards.promql import (
    PLACE,
    last_healthy_step,
    lost,
    most,
    sick_since_step,
    told_since,
    trains,
    verdict,
    verdict_now,
    verdict_since,
    was_sick,
)
from dashboards.run import VERDICT
from dashboards.snapshots import MEASURED
from forcegauge.alarms import VERDICTS
from tests.servers import require

Json = dict[str, Any]
Inputs = Mapping[str, str]
"""Values by series, one a minute; ``_`` is a minute without."""

GIVEN = {
    "$__range": "1h",
    "$__interval": "1m",
    "$cluster": ".*",
    "$namespace": ".*",
    "$run": "r",
}


def answer(folder: Path, promql: str, inputs: Inputs, expected: Mapping[str, float]) -> str:
    """What promtool finds wrong with the values expected by labels, half an hour on."""
    for name, value in GIVEN.items():
        promql = promql.replace(name, value)
    wanted = [{"labels": labels, "value": value} for labels, value in expected.items()]
    ask = {"expr": promql, "eval_time": "30m", "exp_samples": wanted}
    series = [{"series": name, "values": values} for name, values in inputs.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [ask]}
    file = folder / "test.json"
    file.write_text(json.dumps({"rule_files": [], "tests": [test]}))
    command = [require("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def lived(verdicts: str, *, first: int = 0, more: str = "", instance: str = "a") -> Inputs:
    """A run whose verdict at each minute is a letter, and whose probe's step grows by ten.

    What makes it sick begins two probes before the verdict does.
    """
    labels = f'run="r",instance="{instance}"{more}'
    steps = " ".join("_" if v == "_" else str(first + 10 * n) for n, v in _numbered(verdicts))
    times = " ".join("_" if v == "_" else str(60 * n) for n, v in enumerate(verdicts))
    found = {
        f"forcegauge_probe_step{{{labels}}}": steps,
        f"forcegauge_verdict_since_step{{{labels}}}": " ".join(_since(verdicts, steps.split())),
        f"forcegauge_probe_timestamp_seconds{{{labels}}}": times,
    }
    for name in VERDICTS:
        held = ("_" if v == "_" else str(int(v == name[0])) for v in verdicts)
        found[f'forcegauge_run_state{{{labels},state="{name}"}}'] = " ".join(held)
    return found


def _since(verdicts: str, steps: list[str]) -> Iterator[str]:
    first = 0
    for index, letter in enumerate(verdicts):
        first = first if index and verdicts[index - 1] == letter else index
        yield steps[max(0, first - 2) if letter in "sdc" else first]


def _numbered(verdicts: str) -> Iterator[tuple[int, str]]:
    lead = len(verdicts) - len(verdicts.lstrip("_"))
    return ((index - lead, letter) for index, letter in enumerate(verdicts))


RUN = '{run="r"}'
SICK = "w" * 3 + "l" * 17 + "s" * 11
RESUMED = {
    **lived("w" * 3 + "l" * 7 + "c" * 6, instance="a"),
    **lived("_" * 17 + "w" * 3 + "l" * 11, first=50, instance="b"),
}


def test_a_sick_run_is_sick_since_its_drift_began(tmp_path: Path) -> None:
    assert not answer(tmp_path, sick_since_step(PLACE), lived(SICK), {RUN: 180})
    assert not answer(tmp_path, last_healthy_step(PLACE), lived(SICK), {RUN: 190})


def test_a_relapse_counts_from_its_own_beginning(tmp_path: Path) -> None:
    relapsed = lived("l" * 10 + "s" * 5 + "l" * 10 + "s" * 6)
    assert not answer(tmp_path, sick_since_step(PLACE), relapsed, {RUN: 230})


def test_a_worse_verdict_does_not_make_the_run_sick_anew(tmp_path: Path) -> None:
    worse = lived("l" * 10 + "s" * 10 + "c" * 11)
    assert not answer(tmp_path, sick_since_step(PLACE), worse, {RUN: 80})


def test_a_run_that_was_never_well_is_sick_since_its_first_step(tmp_path: Path) -> None:
    assert not answer(tmp_path, sick_since_step(PLACE), lived("d" * 31, first=7), {RUN: 7})


def test_a_run_that_recovered_is_not_sick(tmp_path: Path) -> None:
    recovered = lived("l" * 10 + "s" * 10 + "l" * 11)
    assert not answer(tmp_path, sick_since_step(PLACE), recovered, {})


def test_the_process_that_probed_last_tells_of_a_resumed_run(tmp_path: Path) -> None:
    assert not answer(tmp_path, verdict(PLACE), RESUMED, {RUN: 1})
    assert not answer(tmp_path, sick_since_step(PLACE), RESUMED, {})


def test_every_verdict_has_its_number(tmp_path: Path) -> None:
    for code, name in enumerate(VERDICTS):
        now = lived(name[0] * 31)
        assert not answer(tmp_path, verdict(PLACE), now, {RUN: code})
        assert not answer(tmp_path, verdict_now(PLACE), now, {RUN: code})


def test_a_run_that_ended_keeps_its_last_verdict(tmp_path: Path) -> None:
    ended = lived("l" * 5 + "s" * 5 + "_" * 21)
    assert not answer(tmp_path, verdict(PLACE), ended, {RUN: 2})
    assert not answer(tmp_path, sick_since_step(PLACE), ended, {RUN: 30})


def test_runs_of_one_name_in_two_clusters_are_two(tmp_path: Path) -> None:
    both = {
        **lived("l" * 31, more=',cluster="east"'),
        **lived("s" * 31, more=',cluster="west"', instance="b"),
    }
    expected = {'{cluster="east", run="r"}': 1.0, '{cluster="west", run="r"}': 2.0}
    assert not answer(tmp_path, verdict(PLACE), both, expected)


def test_the_fleet_has_a_forgotten_process_from_the_monitor_alone(tmp_path: Path) -> None:
    told = {
        'forcegauge_monitor_run_state{run="r",state="squeezing",namespace="ops"}': "1x30",
        'forcegauge_monitor_run_state{run="gone",state="collapsed",namespace="ops"}': "_x10 1x20",
    }
    expected = {RUN: 1.0, '{run="gone"}': 4.0}
    assert not answer(tmp_path, ALL_VERDICTS, {**lived("l" * 31), **told}, expected)
    gone = {name: values for name, values in told.items() if "gone" in name}
    assert not answer(tmp_path, told_since(), gone, {'{run="gone"}': 600})


def test_a_run_without_its_process_has_the_verdict_that_the_monitor_was_told(
    tmp_path: Path,
) -> None:
    told = {'forcegauge_monitor_run_state{run="r",state="diverging",namespace="ops"}': "1x30"}
    assert not answer(tmp_path, VERDICT, told, {RUN: 3})


def test_a_verdict_began_when_another_was_there_last(tmp_path: Path) -> None:
    assert not answer(tmp_path, verdict_since(PLACE), lived(SICK), {RUN: 19 * 60})


def test_a_verdict_that_was_always_there_began_with_the_data(tmp_path: Path) -> None:
    late = lived("_" * 5 + "l" * 26)
    assert not answer(tmp_path, verdict_since(PLACE), late, {RUN: 5 * 60})


def test_who_was_sick_is_remembered(tmp_path: Path) -> None:
    assert not answer(tmp_path, was_sick(PLACE), lived("l" * 10 + "s" * 3 + "l" * 18), {RUN: 1})
    assert not answer(tmp_path, was_sick(PLACE), lived("l" * 31), {})


def alarms(**streaks: int) -> Inputs:
    """A run with these streaks, of three needed."""
    found = dict(lived("l" * 31))
    for name, streak in streaks.items():
        labels = f'run="r",instance="a",alarm="{name}"'
        found[f"forcegauge_alarm_streak{{{labels}}}"] = f"{streak}x30"
        found[f"forcegauge_alarm_streak_needed{{{labels}}}"] = "3x30"
    return found


def test_a_run_trains_while_it_is_heard_of_and_is_lost_when_it_never_ended(tmp_path: Path) -> None:
    runs = {name: dict(_active(name, values)) for name, values in LIVES.items()}
    inputs = {series: values for found in runs.values() for series, values in found.items()}
    now = {'{run="trains"}': 1.0, '{run="ended"}': 0.0, '{run="left"}': 0.0, '{run="lost"}': 0.0}
    assert not answer(tmp_path, trains(PLACE), inputs, now)
    assert not answer(tmp_path, lost(PLACE), inputs, {'{run="lost"}': 1})


LIVES = {"trains": "1x30", "ended": "1x9 0x20", "left": "1x9 0x4 _x16", "lost": "1x14 _x16"}


def _active(name: str, values: str) -> Iterator[tuple[str, str]]:
    yield f'forcegauge_run_active{{run="{name}",instance="{name}"}}', values


def test_the_worst_alarm_has_held_longest(tmp_path: Path) -> None:
    quiet = alarms(squeezing=2, argmax_mass_spike=1, repeater=0)
    assert not answer(tmp_path, WORST, quiet, {'{alarm="squeezing", run="r"}': 2 / 3})


def test_an_alarm_that_only_informs_stands_back_behind_one_that_is_on(tmp_path: Path) -> None:
    both = alarms(squeezing=3, valley_force=12)
    assert not answer(tmp_path, WORST, both, {'{alarm="squeezing", run="r"}': 1})
    only = alarms(squeezing=2, valley_force=12)
    assert not answer(tmp_path, WORST, only, {'{alarm="valley_force", run="r"}': 4})


def test_no_alarm_is_the_worst_while_none_has_held(tmp_path: Path) -> None:
    assert not answer(tmp_path, WORST, alarms(squeezing=0), {})


def test_the_ten_highest_are_those_that_end_highest(tmp_path: Path) -> None:
    runs = {f'forcegauge_squeeze_nats{{run="r{n}",instance="{n}"}}': f"{n}x30" for n in range(12)}
    expected = {f'{{run="r{n}"}}': float(n) for n in range(2, 12)}
    assert not answer(tmp_path, most("squeeze_nats", PLACE), runs, expected)


def test_measured_is_the_change_between_the_probes_at_the_last_two_snapshots(
    tmp_path: Path,
) -> None:
    level = 'forcegauge_logprob_nats{run="r",instance="a",response_type="chosen"}'
    step = 'forcegauge_snapshot_step{run="r",instance="monitor"}'
    # probes at steps 0, 10, 20, ...: those at or before 105 and 205 are of minutes 10 and 20
    inputs = {
        **lived("l" * 31),
        level: "-3+0.1x30",
        step: "_x9 55x4 105x9 205x7",
    }
    expected = {'{response_type="chosen"}': 1.0}
    assert not answer(tmp_path, f"round({MEASURED}, 0.001)", inputs, expected)


def test_a_wrong_answer_is_found(tmp_path: Path) -> None:
    assert answer(tmp_path, verdict(PLACE), lived(SICK), {RUN: 1})
