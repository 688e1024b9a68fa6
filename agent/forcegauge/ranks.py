"""The little that a gauge needs of torch.distributed; without it, there is one rank."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def rank() -> int:
    """This process's global rank."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: T) -> T:
    """Rank 0's value, on every rank: all of them have to call."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
