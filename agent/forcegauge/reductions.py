"""One pass over the vocabulary: logits, tile by tile, become every per-token statistic.

A tile holds some rows and some of the vocabulary. Its `Sums` are relative to its own largest
logit, and two of them merge into those of both tiles, so that no more than a tile is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from forcegauge.scores import CANDIDATES, TOP_K

Statistics = dict[str, Tensor]

Tile = Callable[[slice, slice, Tensor], Tensor]

ROWS = 1024
"""Rows that are reduced together, a tile at a time."""

CHUNK = 256
"""Rows whose logits are held at once where they come whole."""

_TILE = {"cpu": 1 << 21}
_TILE_ELSEWHERE = 1 << 26
# Logits of a tile: on a CPU they stay in its cache, elsewhere a kernel's launch should pay.

_FLOOR = -200.0  # e^-200 is 0 in float32, and 0 * 200 is 0 where 0 * inf is NaN
_LOWEST = torch.finfo(torch.float32).min
_LOG2_E = 1.4426950408889634
_DEPTH = 64  # logits of a tile whose largest is looked at first


class Sums(NamedTuple):
    """What a part of the vocabulary adds, each of shape [rows], ``top`` [rows, k].

    The target is left out of all but ``target``, its logit, which is -inf where it is in another
    part. With m the largest other logit, a its token and e_v = exp(z_v - m): ``rest``, ``squares``
    and ``moment`` are the sums over v != a of e, e^2 and e (m - z); ``top`` are the k largest
    logits and ``above`` counts those above the target's.
    """

    top: Tensor
    rest: Tensor
    squares: Tensor
    moment: Tensor
    above: Tensor
    target: Tensor


def tile_sums(
    z: Tensor, targets: Tensor, near: Tensor, first: int = 0, spare: Tensor | None = None
) -> Sums:
    """Sums of one tile: float32 logits z [rows, part], whose tokens begin at ``first``.

    ``near`` [rows] is the target's logit up to rounding, for the rank; the exact one is taken from
    its tile. Logits of -inf count as mass 0. The tile is used up, and so is ``spare``, memory of
    its shape (made where it is not given).
    """
    inside = (targets >= first) & (targets < first + z.shape[1])
    places = (targets - first).clamp(0, z.shape[1] - 1)[:, None]
    found = z.gather(1, places)
    z.scatter_(1, places, torch.where(inside[:, None], -torch.inf, found))
    spare = torch.empty_like(z) if spare is None else spare
    top, argmax = _largest(z)
    above = torch.gt(z, near[:, None], out=spare).sum(1)
    depth = z.sub_(top[:, :1].clamp_min(_LOWEST)).clamp_min_(_FLOOR).mul_(_LOG2_E)
    # exp2 is several times faster than exp on a CPU, and both are as exact where the mass is.
    e = torch.exp2(depth, out=spare).scatter_(1, argmax, 0.0)
    rest = e.sum(1)
    squares = torch.linalg.vector_norm(e, dim=1) ** 2
    moment = e.mul_(depth).sum(1) / -_LOG2_E
    return Sums(top, rest, squares, moment, above, torch.where(inside, found[:, 0], -torch.inf))


def _largest(z: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logits [rows, k] of a tile and the place [rows, 1] of the first of them. Only
    the k columns of each row with the largest maxima are searched: no other holds one of them."""
    rows, width = z.shape
    k, columns = min(TOP_K, width), width // _DEPTH
    if columns < 2 * k or width % _DEPTH:
        top, order = z.topk(k, dim=1)
        return top, order[:, :1]
    table = z.view(rows, _DEPTH, columns)
    best = table.amax(1).topk(k, dim=1).indices
    few = table.gather(2, best[:, None, :].expand(-1, _DEPTH, -1)).flatten(1)
    top, order = few.topk(k, dim=1)
    deep, place = order[:, :1] // k, order[:, :1] % k
    return top, deep * columns + best.gather(1, place)


def merge(a: Sums, b: Sums) -> Sums:
    """Sums of two parts of the vocabulary together; every term is a sum of positive numbers."""
    high = torch.maximum(a.top[:, 0], b.top[:, 0]).clamp_min(_LOWEST)
    fall_a, fall_b = ((part.top[:, 0] - high).clamp_min(_FLOOR) for part in (a, b))
    weight_a, weight_b = fall_a.exp(), fall_b.exp()
    all_a, all_b = 1 + a.rest, 1 + b.rest
    ahead = a.top[:, 0] >= b.top[:, 0]
    both = torch.cat([a.top, b.top], dim=1)
    return Sums(
        top=both.topk(min(TOP_K, both.shape[1]), dim=1).values,
        rest=torch.where(ahead, a.rest + weight_b * all_b, b.rest + weight_a * all_a),
        squares=torch.where(
            ahead,
            a.squares + weight_b**2 * (1 + b.squares),
            b.squares + weight_a**2 * (1 + a.squares),
        ),
        moment=weight_a * (a.moment - fall_a * all_a) + weight_b * (b.moment - fall_b * all_b),
        above=a.above + b.above,
        target=torch.maximum(a.target, b.target),
    )


def statistics_of(sums: Sums) -> Statistics:
    """Statistics of each row (design, section 4) from the sums over the whole vocabulary.

    Float32 tensors of shape [rows]; log-probs and entropy in nats. The target comes in last, so
    that no mass, however small, is a difference. A target as likely as the argmax is the argmax.
    """
    best, z_y = sums.top[:, 0], sums.target
    hit = z_y >= best
    high = torch.maximum(best, z_y)
    fall, gap_y = (best - high).clamp_min(_FLOOR), z_y - high
    weight, e_y = fall.exp(), gap_y.exp()
    b = weight * (1 + sums.rest)
    u = torch.where(hit, b, sums.rest + e_y)
    s, log_s, squares = 1 + u, torch.log1p(u), weight**2 * (1 + sums.squares)
    tops = torch.cat([sums.top, z_y[:, None]], dim=1) - high[:, None]
    tops = tops.topk(min(TOP_K, tops.shape[1]), dim=1).values
    tops = F.pad(tops, (0, TOP_K - tops.shape[1]), value=-torch.inf)
    moment = weight * (sums.moment - fall * (1 + sums.rest)) - e_y * gap_y.clamp_min(_FLOOR)
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
        [
            statistics_of(
                tile_sums(logits[part].to(torch.float32, copy=True), targets[part], z_y[part])
            )
            for part in parts
        ]
    )


def in_chunks(
    logits_of: Callable[[slice], Tensor], targets: Tensor, rows: int = CHUNK
) -> Statistics:
    """`token_statistics` of many rows; ``logits_of`` gives the logits of one slice of them."""
    parts = slices(len(targets), rows)
    return joined([token_statistics(logits_of(part), targets[part]) for part in parts])


def reduce_tiles(tile: Tile, near: Tensor, targets: Tensor, vocabulary: int) -> Statistics:
    """Statistics of rows whose float32 logits ``tile(rows, tokens, into)`` makes piece by piece,
    in the memory ``into`` where it can."""
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
    width = max(256, tile_size(near.device) // count // _DEPTH * _DEPTH)
    memory = torch.empty(2, count * min(width, vocabulary), device=near.device)
    sums: Sums | None = None
    for tokens in slices(vocabulary, width):
        size = count * (tokens.stop - tokens.start)
        into, spare = (part[:size].view(count, -1) for part in memory)
        z = tile(rows, tokens, into)
        part = tile_sums(z, targets, near, tokens.start, spare)
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
