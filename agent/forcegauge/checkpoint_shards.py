"""Weights in the shards that a trainer writes for itself: torch's DCP (FSDP) and DeepSpeed ZeRO."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load

from forcegauge.errors import InputError
from forcegauge.shard_reader import ShardReader
from forcegauge.textfiles import first_line

_DCP_METADATA = ".metadata"
_DCP_FOLDERS = ("", "pytorch_model_fsdp_0", "model")
"""Where accelerate and plain loops put a model's shards in a checkpoint."""


def dcp_folder(folder: Path) -> Path | None:
    """The folder with a model's DCP shards in this checkpoint, None where it is none."""
    places = [folder / name for name in _DCP_FOLDERS]
    return next((one for one in places if any(one.glob("*.distcp"))), None)


def dcp_lacks(folder: Path) -> str | None:
    """What a DCP folder lacks: its metadata, which is written last, or the end of a file."""
    try:
        metadata = ShardReader(folder).index
    except (OSError, EOFError, pickle.UnpicklingError):
        return f"{folder.name}/{_DCP_METADATA}"
    for info in metadata.storage_data.values():
        file = folder / info.relative_path
        if not file.is_file() or file.stat().st_size < info.offset + info.length:
            return f"{folder.name}/{info.relative_path}"
    return None


def load_dcp(model: nn.Module, folder: Path) -> None:
    """Read the model's weights in place. Raises `InputError` for shards of another model."""
    try:
        reader = ShardReader(folder)
        stored = set(reader.index.state_dict_metadata)
        wanted = _stored_names(dict(model.state_dict()), stored, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is ", UserWarning)
            load(wanted, storage_reader=reader, no_dist=True)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"cannot be read ({first_line(error)})", file=folder) from None


def _stored_names(weights: dict[str, Tensor], stored: set[str], folder: Path) -> dict[str, Any]:
    """The weights under the names that the shards have for them: ``model.`` before, as a rule."""
    first = next(iter(weights))
    ends = sorted((name for name in stored if f".{name}".endswith(f".{first}")), key=len)
    prefix = ends[0].removesuffix(first) if ends else ""
    found = {f"{prefix}{name}": weight for name, weight in weights.items()}
    places = {weight.data_ptr() for name, weight in found.items() if name in stored}
    # a tied weight may be stored once
    absent = [n for n, w in found.items() if n not in stored and w.data_ptr() not in places]
    if absent:
        raise InputError(
            f"the shards lack {len(absent)} of the model's weights, {absent[0]} among them",
            fix="Give the model that was trained as --baseline, or put its config.json beside",
            file=folder,
        )
    return {name: weight for name, weight in found.items() if name in stored}


def is_deepspeed(folder: Path) -> bool:
    """Whether the checkpoint holds the states of DeepSpeed's ZeRO."""
    return any(folder.glob("global_step*"))


def deepspeed_lacks(folder: Path) -> str | None:
    """What a ZeRO checkpoint lacks: ``latest``, which is written last and names a folder."""
    latest = folder / "latest"
    named = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    return None if named and any((folder / named).glob("*_states.pt")) else "latest"


def load_deepspeed(model: nn.Module, folder: Path) -> None:
    """Load float32 weights as DeepSpeed's own converter gathers them.

    DeepSpeed's files are pickles: give it folders that you trust. The script that lies in a
    checkpoint is never run. Raises `InputError` where deepspeed is not installed.
    """
    try:
        from deepspeed.utils.zero_to_fp32 import (  # type: ignore[import-not-found, unused-ignore]
            get_fp32_state_dict_from_zero_checkpoint,
        )
    except ImportError:
        fix = "Install deepspeed, or convert the checkpoint with its zero_to_fp32.py"
        raise InputError("these are DeepSpeed's own files", file=folder, fix=fix) from None
    try:
        weights = get_fp32_state_dict_from_zero_checkpoint(folder)
        absent = model.load_state_dict(weights, strict=False).missing_keys
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot be read ({first_line(error)})", file=folder) from None
    if absent:
        fix = "Give the model that was trained as --baseline"
        raise InputError(f"the checkpoint lacks {absent[0]}", file=folder, fix=fix)
