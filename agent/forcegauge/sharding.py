"""How a pass is shared over ranks, and what wrappers of a model need besides.

Each rank scores some of the probes, in as many forwards as any other: under FSDP and ZeRO a
forward is where weights are gathered, and a rank that runs one more waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from forcegauge.encoding import TokenSequence
from forcegauge.layout import IntArray

Values = dict[str, npt.NDArray[np.float32]]
"""Statistics per token, arrays of shape [tokens]."""


@dataclass(frozen=True)
class Share:
    """What one rank scores; ``slots`` are the places of its tokens in the order of all."""

    sequences: Sequence[TokenSequence]
    slots: IntArray


def shares(sequences: Sequence[TokenSequence], count: int) -> list[Share]:
    """Sequences dealt to ``count`` ranks, a probe's together, of about as many tokens each."""
    costs: dict[int, int] = {}
    for item in sequences:
        costs[item.probe] = costs.get(item.probe, len(item.prompt)) + len(item.response)
    loads, owner = [0] * count, {}
    for probe, cost in sorted(costs.items(), key=lambda pair: -pair[1]):
        owner[probe] = loads.index(min(loads))
        loads[owner[probe]] += cost
    return [_share(sequences, [owner[s.probe] == each for s in sequences]) for each in range(count)]


def _share(sequences: Sequence[TokenSequence], mine: Sequence[bool]) -> Share:
    lengths = [len(item.response) for item in sequences]
    slots = np.flatnonzero(np.repeat(np.array(mine, dtype=bool), lengths))
    return Share([s for s, taken in zip(sequences, mine, strict=True) if taken], slots)


def merged(parts: Sequence[Share], found: Sequence[Values]) -> Values:
    """The ranks' values as if one had scored all."""
    total = sum(len(part.slots) for part in parts)
    names = dict.fromkeys(name for values in found for name in values)
    whole = {name: np.full(total, np.nan, dtype=np.float32) for name in names}
    for part, values in zip(parts, found, strict=True):
        for name, array in values.items():
            whole[name][part.slots] = array
    return whole


def tensor_parallel(model: nn.Module) -> bool:
    """Whether ranks compute a forward together, of one batch: then all of them score everything.

    Known by weights that are split in more directions than FSDP splits them.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    # They take long to import, and are there already where weights are sharded.
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Replicate

    allowed = any(isinstance(part, FSDPModule) for part in model.modules())
    return any(
        sum(how != Replicate() for how in weight.placements) > allowed
        for weight in model.parameters()
        if isinstance(weight, DTensor)
    )


@contextmanager
def as_wrapped(model: nn.Module) -> Iterator[None]:
    """Leaves wrappers as they were found: forwards without a backward would change what the
    training's next forward does.

    DDP broadcasts buffers in a forward that follows a backward, and not in one that follows an
    evaluation: inside it does neither, and afterwards it does what it would have done. FSDP2 keeps
    the root's weights gathered for a backward that does not come: afterwards they are sharded.
    """
    wrapped = [part for part in model.modules() if isinstance(part, DistributedDataParallel)]
    before = [part.require_forward_param_sync for part in wrapped]
    try:
        for part in wrapped:
            part.require_forward_param_sync = False
        yield
    finally:
        for part, flag in zip(wrapped, before, strict=True):
            part.require_forward_param_sync = flag
        _reshard(model)


def _reshard(model: nn.Module) -> None:
    if not distributed.is_available() or not distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
