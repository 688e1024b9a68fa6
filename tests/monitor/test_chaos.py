"""Nothing is lost when processes are killed; `make chaos` does many more rounds of this."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.monitor.chaos import FAST, ask, make_inputs, one_round, undisturbed
from tests.monitor.fleet import fleet
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
