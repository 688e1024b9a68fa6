"""Adam's state as trainings leave it in a checkpoint: in one file, in FSDP's shards, or in the
flat partitions of DeepSpeed's ZeRO.

Every form is given as an optimizer's ``state_dict``. Tensors that are not asked for are not read:
they stand on the meta device, where they have their shape. Files are foreign: nothing that they
hold is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from forcegauge.shard_reader import ShardReader

Wanted = Callable[[str], bool]
"""Whether a parameter's tensors are asked for, by its name."""

ONE_FILE = ("optimizer.pt", "optimizer.bin")
FSDP_FOLDER = "optimizer_0"
ZERO_LATEST = "latest"
NO_STATE = "the checkpoint holds no optimizer.pt nor a sharded state"


class NoStateError(Exception):
    """Why a checkpoint gives no Adam-preconditioned attribution."""


def has_state(folder: str | Path) -> bool:
    """Whether an optimizer's state lies in a checkpoint, in a form that `read_state` knows."""
    return _reader_of(Path(folder)) is not None


def read_state(folder: str | Path, wanted: Wanted) -> dict[str, Any]:
    """The optimizer's ``state_dict``; raises `NoStateError` with the reason where there is none."""
    found = _reader_of(Path(folder))
    if found is None:
        raise NoStateError(NO_STATE)
    path, read = found
    try:
        saved = read(path, wanted)
    except NoStateError:
        raise
    except Exception as error:  # noqa: BLE001 - unpickling foreign files fails in any way
        raise NoStateError(f"{path.name} cannot be read ({type(error).__name__})") from None
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= set(saved):
        raise NoStateError(f"{path.name} is no optimizer state of torch")
    return saved


def _reader_of(folder: Path) -> tuple[Path, Callable[[Path, Wanted], Any]] | None:
    for name in ONE_FILE:
        if (folder / name).is_file():
            return folder / name, lambda path, wanted: _load(path)
    if (folder / FSDP_FOLDER / ".metadata").is_file():
        return folder / FSDP_FOLDER, _fsdp
    if (folder / ZERO_LATEST).is_file():
        tag = folder / (folder / ZERO_LATEST).read_text(encoding="utf-8").strip()
        return (tag, _zero) if any(tag.glob("*_optim_states.pt")) else None
    return None


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _fsdp(folder: Path, wanted: Wanted) -> dict[str, Any]:
    """What Accelerate's FSDP writes with `torch.distributed.checkpoint`, read in one process."""
    reader = ShardReader(folder)
    flat, read = dict[str, Any](), dict[str, Any]()
    for key, path in reader.index.planner_data.items():
        entry = reader.index.state_dict_metadata[key]
        if path[1] == "state" and path[-1] not in ("exp_avg_sq", "step"):
            continue
        asked = path[1] != "state" or wanted(path[2])
        flat[key] = _empty(entry, "cpu" if asked else "meta")
        read |= {key: flat[key]} if asked else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(read, storage_reader=reader, planner=_ShardPlanner(), no_dist=True)
    saved = _nested({reader.index.planner_data[key]: value for key, value in (flat | read).items()})
    found: dict[str, Any] = saved["optimizer"]
    groups = found["param_groups"]
    found["param_groups"] = list(groups.values()) if isinstance(groups, dict) else groups
    return found


def _empty(entry: Any, device: str) -> Tensor | None:
    if not isinstance(entry, TensorStorageMetadata):
        return None
    return torch.empty(entry.size, dtype=entry.properties.dtype, device=device)


def _nested(flat: Mapping[Sequence[Any], Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for path, value in flat.items():
        inner = made
        for step in path[:-1]:
            inner = inner.setdefault(step, {})
        inner[path[-1]] = value
    return made


class _ShardPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        # the planner's own would unpickle anything
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def _zero(folder: Path, wanted: Wanted) -> dict[str, Any]:
    """What DeepSpeed writes: each process has a slice of every flat vector."""
    every = [_foreign(path)["optimizer_state_dict"] for path in _of_ranks(folder)]
    inner = [each.get("base_optimizer_state") or each["optimizer_state_dict"] for each in every]
    expected = every[0]["partition_count"]
    if len(every) != (max(expected) if isinstance(expected, list) else expected):
        raise NoStateError(f"{folder.name} has files of {len(every)} of {expected} processes")
    state, groups = dict[str, Any](), list[dict[str, Any]]()
    shapes = _foreign(min(folder.glob("*mp_rank_00_model_states.pt")))["param_shapes"]
    for vector, own in enumerate(shapes):
        flats = [each["state"][vector] for each in inner]
        for name, slices in _slices(every, vector, own).items():
            parts = [flat["exp_avg_sq"][part] for flat, part in zip(flats, slices, strict=True)]
            square = _joined(parts, own[name], wanted(name))
            state[name] = {"exp_avg_sq": square, "step": flats[0]["step"]}
        group = next(each for each in inner[0]["param_groups"] if vector in each["params"])
        groups.append(group | {"params": list(own)})
    return {"state": state, "param_groups": groups}


def _of_ranks(folder: Path) -> list[Path]:
    [prefix] = {path.name.split("zero_pp")[0] for path in folder.glob("*_optim_states.pt")}
    names = (f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in count())
    return list(takewhile(Path.is_file, (folder / name for name in names)))


def _slices(
    every: Sequence[Mapping[str, Any]], vector: int, shapes: Mapping[str, torch.Size]
) -> dict[str, list[slice]]:
    """Where each parameter lies in each process's slice of one flat vector."""
    if "fp32_flat_groups" in every[0]:
        # stage 3: every parameter is cut into equal parts, the last one filled up
        sizes = [-(-shape.numel() // len(every)) for shape in shapes.values()]
        parts = zip(shapes, sizes, accumulate(sizes), strict=True)
        return {name: [slice(end - size, end)] * len(every) for name, size, end in parts}
    maps = [each["param_slice_mappings"][vector] for each in every]
    return {
        name: [slice(m[name].start, m[name].start + m[name].numel) if name in m else slice(0)
               for m in maps]
        for name in shapes
    }  # fmt: skip


def _joined(parts: Sequence[Tensor], shape: torch.Size, wanted: bool) -> Tensor:
    if not wanted:
        return torch.empty(shape, device="meta")
    return torch.cat(list(parts))[: shape.numel()].view(shape)


class _Inert:
    """Stands for an object of DeepSpeed's classes: holds what was pickled, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def _foreign(path: Path) -> Any:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: Any = [(_Inert, name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return _load(path)
