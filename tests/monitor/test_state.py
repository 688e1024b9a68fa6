"""Adam's state in shards is the state of the unsharded training."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcegauge_monitor.entk.adam import from_state, preconditioner
from forcegauge_monitor.entk.state import NoStateError, has_state, read_state
from tests.monitor import sharded, tinies

ZERO = Path(__file__).parent / "zero"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    sharded.in_two_processes(sharded.fsdp, folder)
    return folder


@pytest.fixture(scope="module")
def unsharded() -> dict[str, Tensor]:
    net = sharded.small()
    optimizer = torch.optim.AdamW(sharded.grouped(net), lr=sharded.RATE)
    sharded.train(net, optimizer)
    return from_state(optimizer.state_dict(), net)


def assert_is(folder: Path, expected: dict[str, Tensor], names: Sequence[str] | None) -> None:
    assert has_state(folder)
    found = preconditioner(folder, sharded.small(), names)
    assert list(found) == list(names or expected)
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [None, [NAME]])
@pytest.mark.parametrize("version", ["fsdp1", "fsdp2"])
def test_fsdp_shards_are_put_together(
    fsdp: Path, unsharded: dict[str, Tensor], version: str, names: Sequence[str] | None
) -> None:
    assert_is(fsdp / version, unsharded, names)


@pytest.mark.parametrize("names", [None, [NAME]])
@pytest.mark.parametrize("stage", sharded.STAGES)
def test_zero_partitions_are_put_together(
    unsharded: dict[str, Tensor], stage: str, names: Sequence[str] | None
) -> None:
    """Files that deepspeed 0.19.8 wrote, by `sharded.py`."""
    assert_is(ZERO / stage, unsharded, names)


@pytest.mark.parametrize("form", ["fsdp2", "stage2", "stage3"])
def test_tensors_that_are_not_asked_for_are_not_read(fsdp: Path, form: str) -> None:
    folder = fsdp / form if form.startswith("fsdp") else ZERO / form
    state = read_state(folder, lambda name: name == NAME)["state"]
    read = [name for name, each in state.items() if each["exp_avg_sq"].device.type != "meta"]
    assert read == [NAME]


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_an_index_cannot_run_anything(fsdp: Path, tmp_path: Path) -> None:
    shutil.copytree(fsdp / "fsdp2", tmp_path / "c")
    index = tmp_path / "c" / "optimizer_0" / ".metadata"
    index.write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    with pytest.raises(NoStateError, match=r"cannot be read \(UnpicklingError\)"):
        preconditioner(tmp_path / "c", sharded.small())
    assert not (tmp_path / "made").exists()


def test_a_zero_file_cannot_run_anything(tmp_path: Path) -> None:
    shutil.copytree(ZERO / "stage2", tmp_path / "c")
    [first, *_] = sorted((tmp_path / "c").rglob("*_optim_states.pt"))
    torch.save({"optimizer_state_dict": Attack(tmp_path / "made")}, first)
    with pytest.raises(NoStateError, match="cannot be read"):
        preconditioner(tmp_path / "c", sharded.small())
    assert not (tmp_path / "made").exists()


def test_a_process_whose_file_is_missing_is_told(tmp_path: Path) -> None:
    shutil.copytree(ZERO / "stage3", tmp_path / "c")
    sorted((tmp_path / "c").rglob("*_optim_states.pt"))[1].unlink()
    with pytest.raises(NoStateError, match="files of 1 of 2 processes"):
        preconditioner(tmp_path / "c", sharded.small())


def test_shards_of_another_model_do_not_fit(fsdp: Path) -> None:
    with pytest.raises(NoStateError, match="does not fit"):
        preconditioner(fsdp / "fsdp2", tinies.model("gpt2"))
