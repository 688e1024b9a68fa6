"""Finished pieces of work on disk: written whole or not at all, so that work can go on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forcegauge.errors import RunError


@dataclass(frozen=True)
class Piece:
    """One piece of work: deterministic, independent of all others of its stage.

    Attributes:
        kind: what is to be done.
        types: response types it is about, for a piece of directions or attribution.
        block: which block of parameters.
        part: which slice of sequences, or which probe.
        cost: forward passes of a mean sequence.
    """

    kind: str
    types: tuple[str, ...] = ()
    block: int = 0
    part: int = 0
    cost: float = 0.0

    @property
    def name(self) -> str:
        """Its file's name, without the ending; the same work has the same name."""
        label = "+".join(self.types) or "all"
        return f"{self.kind}-{label}-{self.block}-{self.part}"


def write_piece(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, whole or not at all; raises `RunError` when the disk refuses."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        os.close(descriptor)
        temporary = Path(name)
        try:
            kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(kept, temporary, metadata=dict(metadata or {}))
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written ({error}).") from None


def read_piece(path: Path) -> dict[str, Tensor]:
    """All tensors of a piece; raises `RunError` for a file that is not one."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def metadata_of(path: Path) -> dict[str, str]:
    """What was written beside the tensors."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}).") from None


def stacked_directions(
    paths: list[Path],
    names: tuple[str, ...],
    scale: Mapping[str, Tensor] | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Directions of several files as {parameter: [files, *shape]}; with a scale for each number
    (Adam's), as many more follow that are multiplied with it."""
    made: dict[str, Tensor] = {}
    count = len(paths) * (1 if scale is None else 2)
    for place, path in enumerate(paths):
        with _opened(path) as file:
            for name in names:
                one = file.get_tensor(name).to(device)
                if name not in made:
                    made[name] = torch.empty(count, *one.shape, dtype=one.dtype, device=device)
                made[name][place] = one
                if scale is not None:
                    made[name][len(paths) + place] = one.float() * scale[name].to(device)
    return made
