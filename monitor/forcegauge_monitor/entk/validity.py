"""Whether one-step predictions hold: predicted against measured changes between checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forcegauge.encoding import TokenSequence
from forcegauge_monitor.entk.attribution import Advance, attribute
from forcegauge_monitor.entk.rows import make_batches


def predicted_changes(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    step: Mapping[str, Tensor],
    *,
    rows: int = 8,
    advance: Advance = lambda rows: None,
) -> Tensor:
    """First-order change of every response's per-token mean log-prob, float64 [sequences], nats.

    ``model`` has the weights before the step; ``step`` is what was then added to each parameter,
    by whatever optimizer.
    """
    weights = [torch.full((len(item.response),), 1 / len(item.response)) for item in sequences]
    device = next(model.parameters()).device
    directions = {name: delta.unsqueeze(0).to(device) for name, delta in step.items()}
    batches = make_batches(sequences, rows)
    return attribute(model, batches, weights, directions, advance)[:, 0]


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured changes over responses.

    Attributes:
        slope: measured per predicted, the least-squares line through the origin.
        r2: share of the measured changes' variance that the prediction itself explains, no line
            fitted: 1 is exact, 0 no better than their mean, negative worse.
        residual: root mean square of measured minus predicted, nats per token.
        n: responses.
    """

    slope: float
    r2: float
    residual: float
    n: int


def agreement(predicted: Tensor, measured: Tensor) -> Agreement | None:
    """How well predictions hold; None where nothing can be said (under three, or none moved)."""
    there = predicted.isfinite() & measured.isfinite()
    x, y = predicted[there].double(), measured[there].double()
    if len(x) < 3 or not float(x.square().sum()) or not float(y.var()):
        return None
    error = y - x
    slope = float((x * y).sum() / x.square().sum())
    r2 = 1 - float(error.square().sum() / (y - y.mean()).square().sum())
    return Agreement(slope, r2, float(error.square().mean().sqrt()), len(x))
