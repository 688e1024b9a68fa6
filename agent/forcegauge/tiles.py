"""Tiles of logits: what a part of the vocabulary adds to the statistics of some rows.

A tile's `Sums` are relative to its own largest logit, and two of them merge into those of both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forcegauge.scores import TOP_K

FLOOR = -200.0
"""A logit counts as no lower than this below the largest: e^-200 is 0 in float32, and 0 * 200 is 0
where 0 * inf is NaN."""

DEPTH = 64
"""Logits of a tile whose largest is looked at first: a tile's width is best a multiple of it."""

_LOWEST = torch.finfo(torch.float32).min
_LOG2_E = 1.4426950408889634


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
    depth = z.sub_(top[:, :1].clamp_min(_LOWEST)).clamp_min_(FLOOR).mul_(_LOG2_E)
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
    k, columns = min(TOP_K, width), width // DEPTH
    if columns < 2 * k or width % DEPTH:
        top, order = z.topk(k, dim=1)
        return top, order[:, :1]
    table = z.view(rows, DEPTH, columns)
    best = table.amax(1).topk(k, dim=1).indices
    few = table.gather(2, best[:, None, :].expand(-1, DEPTH, -1)).flatten(1)
    top, order = few.topk(k, dim=1)
    deep, place = order[:, :1] // k, order[:, :1] % k
    return top, deep * columns + best.gather(1, place)


def merge(a: Sums, b: Sums) -> Sums:
    """Sums of two parts of the vocabulary together; every term is a sum of positive numbers."""
    high = torch.maximum(a.top[:, 0], b.top[:, 0]).clamp_min(_LOWEST)
    fall_a, fall_b = ((part.top[:, 0] - high).clamp_min(FLOOR) for part in (a, b))
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
