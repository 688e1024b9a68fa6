"""One pass over the vocabulary: logits, tile by tile, become every per-token statistic.

A tile holds some rows and some of the vocabulary. Its `Sums` are relative to its own largest
logit, and two of them merge into those of both tiles, so that no more than a tile is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from forcegauge.kernel import sums_of
from forcegauge.scores import CANDIDATES, TOP_K
from forcegauge.tiles import DEPTH, FLOOR, Sums, merge

Statistics = dict[str, Tensor]

Tile = Callable[[slice, slice], Tensor]

ROWS = 1024
"""Rows that are reduced together, a tile at a time."""

CHUNK = 256
"""Rows whose logits are held at once where they come whole."""

_TILE = {"cpu": 1 << 21}
_TILE_ELSEWHERE = 1 << 26
# Logits of a tile: on a CPU they stay in its cache, elsewhere a kernel's launch should pay.


def statistics_of(sums: Sums) -> Statistics:
    """Statistics of each row (design, section 4) from the sums over the whole vocabulary.

    Float32 tensors of shape [rows]; log-probs and entropy in nats. The target comes in last, so
    that no mass, however small, is a difference. A target as likely as the argmax is the argmax.
    """
    best, z_y = sums.top[:, 0], sums.target
    hit = z_y >= best
    high = torch.maximum(best, z_y)
    fall, gap_y = (best - high).clamp_min(FLOOR), z_y - high
    weight, e_y = fall.exp(), gap_y.exp()
    b = weight * (1 + sums.rest)
    u = torch.where(hit, b, sums.rest + e_y)
    s, log_s, squares = 1 + u, torch.log1p(u), weight**2 * (1 + sums.squares)
    tops = torch.cat([sums.top, z_y[:, None]], dim=1) - high[:, None]
    tops = tops.topk(min(TOP_K, tops.shape[1]), dim=1).values
    tops = F.pad(tops, (0, TOP_K - tops.shape[1]), value=-torch.inf)
    moment = weight * (sums.moment - fall * (1 + sums.rest)) - e_y * gap_y.clamp_min(FLOOR)
    energy, argmax_mass = b / s, 1 / s
    return {
        "logprob": gap_y - log_s,
        "argmax_logprob": -log_s,
        "argmax_mass": argmax_mass,
        "log_rest": torch.where(u > 0, u.log(), tops[:, 1]) - log_s,
        "entropy": log_s + moment / s,
        "collision": (squares + e_y**2) / s**2,
        "energy": energy,
        "residual_norm": torch.hypot(energy, squares.sqrt() / s),
        "rank": torch.where(hit, 0.0, sums.above),
        "top_mass": tops.exp().sum(1) / s,
        "mass_target": e_y / s,
        "mass_argmax": torch.where(hit, 0.0, argmax_mass),
        "mass_rest": torch.where(hit, b, sums.rest) / s,
        **dict(zip(CANDIDATES, (tops[:, 1:] - log_s[:, None]).unbind(1), strict=True)),
    }


def token_statistics(logits: Tensor, targets: Tensor) -> Statistics:
    """Statistics of rows whose logits [rows, vocab] are there already, of any float type."""
    z_y = logits.gather(1, targets[:, None])[:, 0].float()
    parts = slices(len(targets), max(1, tile_size(logits.device) // logits.shape[1]))
    return joined(
        [statistics_of(sums_of(logits[part], targets[part], z_y[part])) for part in parts]
    )


def in_chunks(
    logits_of: Callable[[slice], Tensor], targets: Tensor, rows: int = CHUNK
) -> Statistics:
    """`token_statistics` of many rows; ``logits_of`` gives the logits of one slice of them."""
    parts = slices(len(targets), rows)
    return joined([token_statistics(logits_of(part), targets[part]) for part in parts])


def reduce_tiles(tile: Tile, near: Tensor, targets: Tensor, vocabulary: int) -> Statistics:
    """Statistics of rows whose logits ``tile(rows, tokens)`` makes piece by piece."""
    return joined(
        [
            statistics_of(sums_of_rows(tile, rows, near[rows], targets[rows], vocabulary))
            for rows in slices(len(targets), ROWS)
        ]
    )


def sums_of_rows(tile: Tile, rows: slice, near: Tensor, targets: Tensor, vocabulary: int) -> Sums:
    """Sums of these rows over ``vocabulary`` tokens, all of it or one process's part, whose
    logits ``tile`` makes; ``near`` and ``targets`` (places in that part) are those of the rows."""
    count = len(targets)
    width = max(256, tile_size(near.device) // count // DEPTH * DEPTH)
    memory = None
    if near.device.type == "cpu":
        memory = torch.empty(2, count * min(width, vocabulary))
    sums: Sums | None = None
    for tokens in slices(vocabulary, width):
        part = sums_of(tile(rows, tokens), targets, near, tokens.start, memory)
        sums = part if sums is None else merge(sums, part)
    assert sums is not None  # a vocabulary has tokens
    return sums


def joined(parts: list[Statistics]) -> Statistics:
    """Statistics of rows one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most ``step``."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def tile_size(device: torch.device) -> int:
    """Logits that a tile holds."""
    return _TILE.get(device.type, _TILE_ELSEWHERE)
