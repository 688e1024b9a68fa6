"""The replayed runs are what the recorded finetunes were."""

from __future__ import annotations

from io import StringIO

from forcegauge.catalogue import METRICS
from forcegauge_monitor.catalogue import METRICS as MONITOR_METRICS
from tests.benchmarks.calibration import recorded
from tests.dashboards.replay import (
    END,
    LOOKED_AT,
    RUNS,
    Timeline,
    agent_timeline,
    fleet,
    monitor_timeline,
    scrapes,
    states,
    write,
)

BY_NAME = {run.name: run for run in fleet()}


def names(timeline: Timeline) -> set[str]:
    return {series.partition("{")[0] for _, shown in timeline for series in shown}


def test_fifty_runs_repeat_every_record() -> None:
    assert len(BY_NAME) == RUNS
    assert {run.record for run in BY_NAME.values()} == {run.name for run in recorded()}


def test_the_runs_that_are_looked_at_squeeze_stay_well_and_collapse() -> None:
    last = [list(states(BY_NAME[name]))[-1][1].verdict for name in LOOKED_AT]
    assert last == ["squeezing", "learning", "collapsed"]


def test_a_run_goes_through_its_phases_and_its_step_never_falls() -> None:
    known = [state for _, state in states(BY_NAME[LOOKED_AT[0]])]
    assert list(dict.fromkeys(state.phase for state in known)) == ["sft", "dpo"]
    steps = [state.train_step or 0 for state in known]
    assert steps == sorted(steps)
    assert steps[-1] == 24 + 32


def test_only_what_the_exporters_know_is_shown() -> None:
    run = BY_NAME[LOOKED_AT[0]]
    assert names(agent_timeline(run)) <= {row.name for row in METRICS} | {"up"}
    told = monitor_timeline({run: list(states(run))})
    assert names(told) <= {row.name for row in MONITOR_METRICS} | {"up"}
    assert "forcegauge_entk_norm" in names(told)


def test_a_run_that_ends_tells_so_and_then_goes() -> None:
    (ended, goodbye), (gone, nothing) = agent_timeline(BY_NAME[ended_early()])[-2:]
    active = [value for series, value in goodbye.items() if "run_active" in series]
    assert active == [0]
    assert nothing == {}
    assert ended < gone < END


def ended_early() -> str:
    return next(name for name, run in BY_NAME.items() if run.ended < END)


def test_a_value_is_written_at_every_scrape_until_the_next_one() -> None:
    file = StringIO()
    late = scrapes()[-1] - 1
    count = write(file, [(scrapes()[0] + 1, {"a{}": 1.0}), (late, {"a{}": 2.0})])
    lines = file.getvalue().splitlines()
    assert len(lines) == count == len(scrapes()) - 1
    assert lines[0] == f"a{{}} 1.0 {scrapes()[1]}"
    assert lines[-1] == f"a{{}} 2.0 {scrapes()[-1]}"
