"""Nothing is lost when processes are killed; `make chaos` does many more rounds of this."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitor.chaos import make_inputs, one_round, undisturbed

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
