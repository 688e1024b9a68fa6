"""Which checkpoints of a folder are whole: what is still being written is left alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from forcegauge.checkpoint_shards import dcp_folder, dcp_lacks, deepspeed_lacks, is_deepspeed

NAME = re.compile(r"(?:checkpoint|global_step|step)[-_]?(\d+)(?:[-_]hf)?")
PLACES = ("actor/huggingface",)
"""Where in a checkpoint a trainer keeps its model, but for the checkpoint itself: verl."""
QUIET_SECONDS = 2.0
"""No file of a checkpoint changes for so long before it is read."""

_LAST_OF_A_TRAINER = "trainer_state.json"
_FIRST_OF_A_TRAINER = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")

Found = tuple[int, Path]
"""A checkpoint's step and folder."""


def checkpoints_in(folder: str | Path) -> list[Found]:
    """Everything in a folder that has a checkpoint's name (checkpoint-N, step-N, global_stepN_hf),
    by rising step; nothing while the folder is not there. The model may lie deeper in it."""
    place = Path(folder)
    named = [(NAME.fullmatch(path.name), path) for path in _entries(place) if path.is_dir()]
    return sorted((int(match[1]), _model_place(path)) for match, path in named if match)


def _model_place(folder: Path) -> Path:
    return next((folder / place for place in PLACES if (folder / place).is_dir()), folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def settled(found: Iterable[Found]) -> list[Found]:
    """The whole ones, after a look at whether any file still changes; the files' clock may be
    another machine's, so that only two looks can tell."""
    before = {one: _sizes(one[1]) for one in found if lacks(one[1]) is None}
    if before:
        time.sleep(QUIET_SECONDS)
    return [one for one, sizes in before.items() if sizes == _sizes(one[1]) and not lacks(one[1])]


def _sizes(folder: Path) -> set[tuple[str, int, int]]:
    return set(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in folder.rglob("*"):
        try:
            known = path.stat()
        except FileNotFoundError:
            # deleted, or renamed when it was whole: the other look has it otherwise
            continue
        yield str(path), known.st_size, known.st_mtime_ns


def lacks(folder: Path) -> str | None:
    """What a checkpoint lacks to be scored, in words; None when it is whole.

    A trainer's checkpoint has its ``trainer_state.json``, which is written last. Weights are
    checked by their own lists of contents: safetensors headers and index, DCP's metadata.
    """
    written = any((folder / name).exists() for name in _FIRST_OF_A_TRAINER)
    if written and _json(folder / _LAST_OF_A_TRAINER) is None:
        return _LAST_OF_A_TRAINER
    if (folder / "adapter_config.json").exists():
        return _first_torn(folder, ("adapter_model.safetensors",), "adapter_config.json")
    if (index := folder / "model.safetensors.index.json").exists():
        shards = (_json(index) or {}).get("weight_map", {}).values()
        return _first_torn(folder, sorted(set(shards)), "config.json") if shards else index.name
    if dcp := dcp_folder(folder):
        return dcp_lacks(dcp)
    if is_deepspeed(folder) and not (folder / _WEIGHTS[0]).exists():
        return deepspeed_lacks(folder)
    return _first_torn(folder, _WEIGHTS[:1], "config.json")


def _first_torn(folder: Path, weights: Iterable[str], settings: str) -> str | None:
    if _json(folder / settings) is None:
        return settings
    return next((name for name in weights if not _whole(folder / name)), None)


def _whole(path: Path) -> bool:
    """A safetensors file says in its header how long it is."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
