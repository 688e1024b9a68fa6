"""Nothing is lost when processes are killed; `make chaos` does many more rounds of this."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from forcegauge_monitor.embedded import forcegauge
from tests.monitor.chaos import FAST, ask, differences, make_inputs, one_round, undisturbed
from tests.monitor.fleet import Fleet, fleet
from tests.servers import fetch, wait_for

AWAY_SECONDS = 12.0

pytestmark = [
    pytest.mark.slow,
    # torch's forward-mode AD imports what it deprecates itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]


def test_killed_processes_lose_no_snapshot_and_change_no_result(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    undisturbed(inputs, tmp_path / "expected")
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        found = one_round(folder, inputs, tmp_path / "expected", seed, snapshots=8, kills=4)
        assert not found.faults, found
        assert found.states == {"done": 8}, found


def test_while_redis_is_away_writes_are_refused_and_then_all_goes_on(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    with fleet(tmp_path / "monitor", roots=str(tmp_path / "inputs"), **FAST) as one:
        asked = {f"run-{number}": ask(one, f"run-{number}", inputs) for number in range(3)}
        one.kill("redis")
        began = time.monotonic()
        status, problem = one.call("POST", "/runs", {"run": "late", "record_id": "late"})
        assert (status, problem["status"]) == (503, 503)
        assert fetch(f"{one.url}/healthz")[0] == 200
        time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
        one.revive()
        wait_for(lambda: set(one.states(asked).values()) == {"done"}, 120)


def test_a_pool_of_processes_survives_one_that_is_killed(tmp_path: Path) -> None:
    # some seconds of work, so that a process is seen at it: it says so every two seconds
    inputs = make_inputs(tmp_path / "inputs", layers=8, pairs=256)
    undisturbed(inputs, tmp_path / "expected")
    with fleet(tmp_path / "monitor", workers=0, roots=str(tmp_path / "inputs"), **FAST) as one:
        options = ("--pool", "prefork", "--concurrency", "2", "--name", "pool", "--queues", "cpu")
        file = str(one.folder / "settings.json")
        one.family.add("pool", forcegauge("monitor", "worker", "--settings", file, *options))
        key = ask(one, "run", inputs)
        os.kill(wait_for(lambda: _at_work(one)), signal.SIGKILL)
        wait_for(lambda: one.states({"run": key})["run"] == "done", 120)
        assert all(child.running for child in one.family.children)
        found = one.store.snapshot("run", key)
        assert found is not None
        assert not differences(Path(found.path), tmp_path / "expected", found.metrics, "run")


def _at_work(one: Fleet) -> int:
    """Process id of a worker that is busy; 0 while none is."""
    busy = (each.name for each in one.store.workers() if each.busy)
    return next((int(name.rpartition("-")[2]) for name in busy), 0)
