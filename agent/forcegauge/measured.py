"""What is measured of the tokens of a pass before their forces are known. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from forcegauge.errors import RunError
from forcegauge.forces import from_collision
from forcegauge.reductions import Statistics

HEAD_TOLERANCE = 0.2
"""Nats by which the log-probs read off the head may differ from the trainer's in the mean: above
the rounding of bfloat16 logits, below what a forgotten temperature or soft-cap makes."""

Measured = tuple[Tensor, Tensor, Tensor]
"""``logprob``, ``energy`` and ``rest`` of `TokenForces`."""


def from_logps(logps: Tensor, log_sum_sq: Tensor | None, mask: Tensor) -> Measured:
    """Of log-probs [rows, tokens] where ``mask`` is 1; ||pi||^2 is NaN where it is not known."""
    logprob = here(logps[mask])
    if log_sum_sq is not None:
        return logprob, *from_collision(logprob, here(log_sum_sq[mask]))
    return logprob, -torch.expm1(logprob), torch.full_like(logprob, torch.nan)


def from_statistics(statistics: Statistics) -> Measured:
    """Of what one pass over the vocabulary found (see `forcegauge.reductions`)."""
    names = ("logprob", "energy", "collision", "residual_norm")
    found = (here(statistics.get(name, torch.zeros(0))) for name in names)
    logprob, energy, collision, norm = found
    others, beside = collision - (2 * logprob).exp(), norm.square() - energy.square()
    # each difference keeps its digits on one side only: the collision's where pi_y is small
    return logprob, energy, torch.where(energy > 0.5, others, beside).clamp(min=0)


def here(values: Tensor) -> Tensor:
    """On the CPU in float64: some accelerators have none, and nothing stays in their memory."""
    return values.detach().cpu().double()


def check_head(ours: Tensor, theirs: Tensor) -> None:
    """Raise `RunError` where log-probs read off the head are not the trainer's."""
    off = float((ours - here(theirs)).abs().mean()) if ours.numel() else 0.0
    if not off <= HEAD_TOLERANCE:
        raise RunError(
            f"log-probs read off the model's head are {off:.2g} nats from the trainer's: the head "
            "does more than scale and soft-cap, or the trainer has a temperature not told here"
        )
