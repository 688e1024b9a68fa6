"""Output heads whose weight is spread over processes by vocabulary (tensor parallelism).

Each process reduces its part of the vocabulary to `Sums`, of O(rows) numbers; these are exchanged
and merged, the logits never. Every process ends with the same numbers, merged in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from forcegauge.reductions import (
    ROWS,
    Statistics,
    Tile,
    joined,
    slices,
    statistics_of,
    sums_of_rows,
)
from forcegauge.scores import TOP_K
from forcegauge.tiles import Sums, merge


@dataclass(frozen=True)
class VocabularyShard:
    """This process's rows of a head: ``weight`` [part, hidden] for the tokens from ``first`` on.
    ``part`` is the length of the first parts; the last may be shorter."""

    weight: Tensor
    bias: Tensor | None
    first: int
    part: int
    vocabulary: int
    group: dist.ProcessGroup

    def owned(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which targets are in this part, and their places in it (the nearest for the others)."""
        places = targets - self.first
        inside = (places >= 0) & (places < len(self.weight))
        return inside, places.clamp(0, len(self.weight) - 1)

    def near(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The head's output for each row's target, [rows], in float32: its owner computes it."""
        inside, places = self.owned(targets)
        found = (hidden * self.weight[places]).sum(1)
        found = (found if self.bias is None else found + self.bias[places]).float()
        found = torch.where(inside, found, 0.0)
        dist.all_reduce(found, group=self.group)
        return found

    def statistics(self, tile: Tile, near: Tensor, targets: Tensor) -> Statistics:
        """Statistics of rows over the whole vocabulary; ``tile`` makes logits of this part."""
        found = []
        for rows in slices(len(targets), ROWS):
            places = targets[rows] - self.first
            sums = sums_of_rows(tile, rows, near[rows], places, len(self.weight))
            found.append(statistics_of(self._merged(sums)))
        return joined(found)

    def _merged(self, sums: Sums) -> Sums:
        """The sums of all parts together, exchanged as one tensor; all in float32, in which the
        count ``above`` is exact too."""
        top = F.pad(sums.top, (0, TOP_K - sums.top.shape[1]), value=-torch.inf)
        mine = torch.cat([top, *(part[:, None].float() for part in sums[1:])], dim=1)
        found, *others = (
            Sums(part[:, :TOP_K], *part[:, TOP_K:].unbind(1)) for part in self._gathered(mine)
        )
        for other in others:
            found = merge(found, other)
        return found

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, mine.contiguous(), group=self.group)
        return parts

    def whole(self, logits: Tensor) -> Tensor:
        """Logits [rows, vocab] from each process's part of them; for the few rows of a check."""
        wide = F.pad(logits, (0, self.part - logits.shape[-1]))
        return torch.cat(self._gathered(wide), dim=-1)[:, : self.vocabulary]


def shard_of(head: nn.Module | None) -> VocabularyShard | None:
    """This process's part of a linear head that is sharded by vocabulary, None for any other."""
    if not isinstance(head, nn.Linear) or not dist.is_available() or not dist.is_initialized():
        return None
    # It takes long to import, and is there already where weights are sharded.
    from torch.distributed.tensor import DTensor, Replicate, Shard

    weight = head.weight
    if not isinstance(weight, DTensor):
        return None
    split = [place for place, how in enumerate(weight.placements) if how != Replicate()]
    if len(split) != 1 or weight.placements[split[0]] != Shard(0):
        return None
    mesh, size, (place,) = weight.device_mesh, len(weight), split
    part = -(-size // mesh.size(place))
    if part * (mesh.size(place) - 1) >= size:
        return None
    first, local = part * mesh.get_local_rank(place), weight.to_local()
    bias: Tensor | None = head.bias
    if bias is not None:
        bias = bias.to_local() if isinstance(bias, DTensor) else bias[first : first + len(local)]
    return VocabularyShard(local, bias, first, part, size, mesh.get_group(place))
