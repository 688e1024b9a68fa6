"""The force of a loss on every token, what the forces of a batch sum to, and the squeeze law.

A loss that depends on the model through per-token log-probs has at the logits of one position the
residual G = w (pi - e_y) with w = -dL/dlog pi(y): w > 0 pulls the token y up, w < 0 pushes it
down. Everything here is plain tensors; `forcegauge.capture` reads w off a training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

VALLEY_MASS = 0.01
"""A pushed-down token is in the valley when its probability is below this: the model itself would
say it less than once in a hundred visits, so the push is off-policy, hardly frees mass of its own
and mostly drains the other unlikely tokens into the argmax."""

SOURCES = ("chosen", "rejected")
"""Names of the non-negative values of `TokenForces.source`."""


@dataclass(frozen=True)
class TokenForces:
    """The forces on the trained tokens of one backward pass; every field has shape [tokens].

    Attributes:
        weight: w = -dL/dlog pi(y), divided by the temperature of the softmax.
        logprob: log pi(y) in nats.
        energy: 1 - pi(y).
        rest: sum of pi_v^2 over v != y; NaN where unknown.
        context: equal numbers mean the same tokens before this one.
        label: the token y.
        source: index into `SOURCES`; -1 where unknown, or where both pushed.
    """

    weight: Tensor
    logprob: Tensor
    energy: Tensor
    rest: Tensor
    context: Tensor
    label: Tensor
    source: Tensor

    def residual_norm(self) -> Tensor:
        """||pi - e_y|| = sqrt((1 - pi_y)^2 + sum of the other pi_v^2), shape [tokens]."""
        return (self.energy.square() + self.rest).sqrt()

    def excess(self) -> Tensor:
        """||pi||^2 - pi_y, shape [tokens]; written so that nothing near 1 is subtracted."""
        return self.rest - self.logprob.exp() * self.energy

    def pick(self, index: Tensor) -> TokenForces:
        """The forces at ``index`` (positions or a mask)."""
        return TokenForces(*(getattr(self, field.name)[index] for field in fields(self)))


def from_collision(logprob: Tensor, log_sum_sq: Tensor) -> tuple[Tensor, Tensor]:
    """``energy`` and ``rest`` from log pi(y) and log ||pi||^2, in float64.

    ``rest`` = ||pi||^2 - pi_y^2 cancels when pi_y is near 1: float32 inputs carry an absolute
    error of about 1e-7. It is kept inside its mathematical bounds [0, energy^2], so that the
    residual norm is at most a factor sqrt(2) off even where nothing of the difference survives
    (energy below 3e-4). Where logits are at hand, sum the terms v != y instead.
    """
    logprob, log_sum_sq = logprob.double(), log_sum_sq.double()
    energy = -torch.expm1(logprob)
    rest = (2 * logprob).exp() * torch.expm1(log_sum_sq - 2 * logprob)
    return energy, rest.clamp(min=0).minimum(energy.square())


def contexts(input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Numbers that are equal where all tokens up to and including a position are equal.

    Args:
        input_ids: [rows, positions]; give padding a value of its own, such as -1.
        position_ids: [rows, positions], needed when a row packs several sequences: each 0 in it
            begins a new one.

    Returns:
        int64 [rows, positions].
    """
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    if position_ids is not None:
        starts |= position_ids.expand_as(input_ids) == 0
    starts[:, 0] = True
    segment = starts.flatten().cumsum(0) - 1
    place = torch.arange(segment.numel(), device=segment.device)
    offset = place - place[starts.flatten()][segment]
    shape = (int(segment[-1]) + 1, int(offset.max()) + 1)
    rows = torch.full(shape, -2, dtype=input_ids.dtype, device=input_ids.device)
    rows[segment, offset] = input_ids.flatten()
    first = torch.zeros(shape, dtype=torch.long, device=input_ids.device)
    for row in reversed(range(shape[0])):
        first[(rows == rows[row]).long().cumprod(1).bool()] = row
    return (first[segment, offset] * shape[1] + offset).view_as(input_ids)


def net_forces(tokens: TokenForces) -> TokenForces:
    """Forces on the same token in the same context, summed: one row per (context, token).

    On a preference pair's shared prefix the two forces cancel here, as they do in the gradient.
    """
    if tokens.weight.numel() == 0:
        return tokens
    keys = torch.stack([tokens.context, tokens.label])
    _, group = torch.unique(keys, dim=1, return_inverse=True)
    count = int(group.max()) + 1
    order = torch.arange(group.numel(), device=group.device)
    first = torch.zeros(count, dtype=torch.long, device=group.device)
    first = first.scatter_reduce(0, group, order, "amin", include_self=False)
    weight = tokens.weight.new_zeros(count).index_add(0, group, tokens.weight)
    low, high = (
        tokens.source.new_zeros(count).scatter_reduce(
            0, group, tokens.source, how, include_self=False
        )
        for how in ("amin", "amax")
    )
    summed = tokens.pick(first)
    return TokenForces(
        weight=weight,
        logprob=summed.logprob,
        energy=summed.energy,
        rest=summed.rest,
        context=summed.context,
        label=summed.label,
        source=torch.where(low == high, low, -1),
    )


def _tail_drain(net: TokenForces) -> Tensor:
    """Per context with a push-down: (-pi.G)_+, what a token of vanishing mass loses there.

    For a single pushed token this is |w| (||pi||^2 - pi_y)_+; where one token is pulled up and
    another pushed down in one context, the pull counts against the push, as in the gradient.
    """
    _, group = torch.unique(net.context, return_inverse=True)
    count = int(group.max()) + 1 if group.numel() else 0
    drain = net.weight.new_zeros(count).index_add(0, group, -net.weight * net.excess())
    pushed = net.weight.new_zeros(count).index_add(0, group, (net.weight < 0).to(net.weight.dtype))
    return drain.clamp(min=0)[pushed > 0]


def force_sums(tokens: TokenForces, trained: int | None = None) -> dict[str, float]:
    """Sums over the net forces of one backward pass; sums of several passes of a step add up.

    Args:
        tokens: forces; those of the same context are summed first.
        trained: number of trained tokens, also those without force (default: those with one).
    """
    net = net_forces(tokens)
    norm, up, down = net.weight.abs() * net.residual_norm(), net.weight > 0, net.weight < 0
    energy = net.weight.abs() * net.energy
    sums = {
        "up": norm[up].sum(),
        "down": norm[down].sum(),
        "energy_up": energy[up].sum(),
        "energy_down": energy[down].sum(),
        "valley": norm[down & (net.logprob < math.log(VALLEY_MASS))].sum(),
        "push": -net.weight[down].sum(),
        "drain": _tail_drain(net).sum(),
    }
    for index, source in enumerate(SOURCES):
        mine = net.source == index
        if mine.any():
            sums[f"{source}_up"] = norm[up & mine].sum()
            sums[f"{source}_down"] = norm[down & mine].sum()
    # a comparison with NaN is False: without this a broken gradient would read as no force
    broken = 0.0 if net.weight.isfinite().all() else math.nan
    values = {name: float(value) + broken for name, value in sums.items()}
    return {**values, "tokens": float((tokens.weight != 0).sum() if trained is None else trained)}


def add_sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sums of one optimizer step from those of its backward passes, name by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


_VALUES = {
    "force_up_norm": "up",
    "force_down_norm": "down",
    "force_up_energy": "energy_up",
    "force_down_energy": "energy_down",
    "squeeze_law_nats": "drain",
    "force_tokens": "tokens",
    **{f"force_{name}_{way}_norm": f"{name}_{way}" for name in SOURCES for way in ("up", "down")},
}
_RATIOS = {
    "force_up_token_norm": ("up", "tokens"),
    "force_down_token_norm": ("down", "tokens"),
    "valley_force_ratio": ("valley", "down"),
    "squeeze_law_ratio": ("drain", "push"),
    "force_uncovered_ratio": ("uncovered", "gradient"),
}
_STEPS = {
    "force_up_step_norm": "up",
    "force_down_step_norm": "down",
    "squeeze_law_step_nats": "drain",
}


def force_values(sums: Mapping[str, float], learning_rate: float | None = None) -> dict[str, float]:
    """The sums of a step as they go to the record, under the catalogue's names without prefix.

    ``force_{up,down}_norm``: F_up and F_down, sums of |w| ||pi - e_y|| over net forces;
    ``.._token_norm``: over the trained tokens; ``.._energy``: with 1 - pi_y in place of the norm.
    ``valley_force_ratio``: share of F_down on tokens below `VALLEY_MASS`. ``squeeze_law_nats``:
    what the push-down takes from the log-prob of every token of vanishing mass, in nats per unit
    of eta kappa, summed over contexts (design section 6); ``squeeze_law_ratio``: the same over
    sum |w^-|, 0 to 1. With a learning rate also ``force_{up,down}_step_norm`` and
    ``squeeze_law_step_nats``, the values times it. ``force_{chosen,rejected}_{up,down}_norm``
    where the batch tells which is which; a token that both push belongs to neither.
    ``force_uncovered_ratio``: share of the gradient at the logits that is not of the form
    w (pi - e_y), where the logits themselves were seen.
    What is undefined (||pi||^2 unknown, nothing pushed down, a non-finite gradient) is absent.
    """
    known = {name: value for name, value in sums.items() if math.isfinite(value)}
    values = {name: known[key] for name, key in _VALUES.items() if key in known}
    for name, (part, whole) in _RATIOS.items():
        if part in known and known.get(whole, 0.0) > 0:
            values[name] = known[part] / known[whole]
    if learning_rate is not None:
        values |= {name: known[key] * learning_rate for name, key in _STEPS.items() if key in known}
    return values


def squeeze_law(probs: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """First-order change of log pi_v per unit of eta kappa when y is pushed with weight w.

    With the kernel taken as kappa I:  -w (pi_v - 1[v = y] - (||pi||^2 - pi_y)).

    Args:
        probs: pi, [..., vocab].
        label: y, [...], int64.
        weight: w, [...]; negative pushes y down.

    Returns:
        [..., vocab], nats.
    """
    onehot = torch.nn.functional.one_hot(label, probs.shape[-1]).to(probs.dtype)
    excess = probs.square().sum(-1) - probs.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    return -weight.unsqueeze(-1) * (probs - onehot - excess.unsqueeze(-1))


def squeeze_winners(probs: Tensor, label: Tensor) -> Tensor:
    """Who gains when y is pushed down: v != y with pi_v > ||pi||^2 - pi_y; bool [..., vocab]."""
    excess = probs.square().sum(-1) - probs.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    others = torch.nn.functional.one_hot(label, probs.shape[-1]) == 0
    return others & (probs > excess.unsqueeze(-1))
