"""Whether the kernel stays what it was: two checkpoints compared through the same seeds."""

from __future__ import annotations

import torch
from torch import Tensor


def alignment(now: Tensor, before: Tensor) -> float:
    """<K_t, K_0> / (||K_t|| ||K_0||), pooled over seeds and pairs, -1 to 1.

    From signed bilinear values of the same pairs and seeds: products of two checkpoints' values
    estimate the kernels' inner product, which norms alone cannot (design section 7.3).
    """
    one, other = _both(now, before)
    return float((one * other).sum() / (one.norm() * other.norm()))


def velocity(now: Tensor, before: Tensor) -> float:
    """||K_t - K_s|| / ||K_s||, pooled over seeds and pairs."""
    one, other = _both(now, before)
    return float((one - other).norm() / other.norm())


def _both(now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    if now.shape != before.shape:
        raise ValueError(f"values of different pairs or seeds: {now.shape} and {before.shape}")
    there = now.isfinite() & before.isfinite()
    return now[there].double(), before[there].double()


def rank_stability(now: Tensor, before: Tensor) -> float | None:
    """Spearman's correlation of two rows of norms over response types; None below three types."""
    there = now.isfinite() & before.isfinite()
    if int(there.sum()) < 3:
        return None
    ranks = torch.stack([_ranks(now[there]), _ranks(before[there])])
    found = float(torch.corrcoef(ranks)[0, 1])
    return found if found == found else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing the mean of theirs."""
    below = (values[:, None] > values[None, :]).double().sum(1)
    equal = (values[:, None] == values[None, :]).double().sum(1)
    return below + (equal - 1) / 2
