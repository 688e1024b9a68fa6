"""One pass over the vocabulary: logits of a few rows become every per-token statistic."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from forcegauge.scores import TOP_K

Statistics = dict[str, Tensor]

ROWS = 256
"""Rows whose logits are held in float32 at once."""

_FLOOR = -200.0  # e^-200 is 0 in float32, and 0 * 200 is 0 where 0 * inf is NaN


def token_statistics(logits: Tensor, targets: Tensor) -> Statistics:
    """Statistics of each row (design, section 4): logits [rows, vocab], targets [rows].

    Returns float32 tensors of shape [rows]; log-probs and entropy in nats. With m the largest
    logit, a its token and e_v = exp(z_v - m), everything follows from u = sum of e over v != a,
    the same sum of e^2 and of e (m - z), from e_y and from the k largest logits. Masses close
    to 0 or 1 are never a difference of nearly equal numbers. Logits of -inf count as mass 0.
    """
    z = logits.float()
    top, places = z.topk(min(TOP_K, z.shape[-1]), dim=-1)
    m, argmax = top[:, :1], places[:, :1]
    z_y = z.gather(1, targets[:, None])
    buffer = torch.gt(z, z_y, out=torch.empty_like(z))
    rank = buffer.sum(1)
    depth = torch.sub(z, m, out=buffer).clamp_min_(_FLOOR)
    e = depth.exp().scatter_(1, argmax, 0.0)
    u = e.sum(1)
    squares = torch.linalg.vector_norm(e, dim=1) ** 2
    moment = -torch.bmm(e.unsqueeze(1), depth.unsqueeze(2)).reshape(-1)
    hit = argmax[:, 0] == targets
    gaps = top - m
    return _finish(u, squares, moment, (z_y - m)[:, 0], gaps, hit) | {"rank": rank}


def _finish(
    u: Tensor, squares: Tensor, moment: Tensor, gap_y: Tensor, gaps: Tensor, hit: Tensor
) -> Statistics:
    """The statistics from the sums over v != argmax; ``gap_y`` is z_y - m, ``hit`` y == argmax."""
    e_y = gap_y.exp()
    log_s = torch.log1p(u)
    s = 1 + u
    beside = (u - e_y).clamp_min(0.0)  # mass besides argmax and target, for a target that is not it
    b = torch.where(hit, u, 1 + beside)
    q = torch.where(hit, squares, 1 + (squares - e_y**2).clamp_min(0.0))
    energy = b / s
    log_u = torch.where(u > 0, u.log(), gaps[:, 1] if gaps.shape[1] > 1 else -torch.inf)
    argmax_mass = 1 / s
    return {
        "logprob": gap_y - log_s,
        "argmax_logprob": -log_s,
        "argmax_mass": argmax_mass,
        "log_rest": log_u - log_s,
        "entropy": log_s + moment / s,
        "collision": (q + e_y**2) / s**2,
        "energy": energy,
        "residual_norm": torch.hypot(energy, q.sqrt() / s),
        "top_mass": gaps.exp().sum(1) / s,
        "mass_target": e_y / s,
        "mass_argmax": torch.where(hit, 0.0, argmax_mass),
        "mass_rest": torch.where(hit, u, beside) / s,
    }


def in_chunks(
    logits_of: Callable[[slice], Tensor], targets: Tensor, rows: int = ROWS
) -> Statistics:
    """`token_statistics` of many rows; ``logits_of`` gives the logits of one slice of them."""
    parts = [
        token_statistics(logits_of(part), targets[part]) for part in _slices(len(targets), rows)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _slices(length: int, step: int) -> Iterable[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
