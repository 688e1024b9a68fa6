"""Closed forms of w = -dL/dlog pi(y_t) for the losses people train with (design section 6).

For tests, for fused losses whose log-probs no hook can reach, and for pairs that were never
trained on. Signs and normalisers are those of TRL 1.16. Losses that mix rows (AOT), other
f-divergences, DiscoPOP, SAPO and VESPO have no entry: `forcegauge.capture` reads them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forcegauge.errors import InputError

Weights = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """A batch of preference pairs; tensors have shape [pairs].

    Attributes:
        chosen: r+ = log pi(y+) - log pi_ref(y+), summed over tokens, in nats; log pi(y+) itself for
            the losses without a reference (CPO, SimPO, ORPO).
        rejected: r-, likewise.
        chosen_tokens: |y+|.
        rejected_tokens: |y-|.
        beta: the loss's beta (ORPO: its lambda).
        label_smoothing: probability that a pair is labelled the wrong way round.
        margin: SimPO's gamma, the target of beta times the mean gap.
        penalty: DPOP's lambda on a chosen answer that fell below the reference.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.5
    penalty: float = 50.0

    @property
    def gap(self) -> Tensor:
        """h = r+ - r-."""
        return self.chosen - self.rejected

    @property
    def mean_gap(self) -> Tensor:
        """r+ / |y+| - r- / |y-|."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def _slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _logistic(p: Pairs, gap: Tensor) -> Tensor:
    wrong = p.label_smoothing
    right = (1 - wrong) * torch.sigmoid(-p.beta * gap)
    return p.beta * (right - wrong * torch.sigmoid(p.beta * gap))


def _opposite(weight: Tensor) -> Weights:
    return weight, -weight


def _per_token(p: Pairs, weight: Tensor) -> Weights:
    return weight / p.chosen_tokens, -weight / p.rejected_tokens


def _robust(p: Pairs) -> Weights:
    wrong = p.label_smoothing
    both = (1 - wrong) * torch.sigmoid(-p.beta * p.gap) + wrong * torch.sigmoid(p.beta * p.gap)
    return _opposite(p.beta * both / (1 - 2 * wrong))


def _sppo_hard(p: Pairs) -> Weights:
    target = 1 / (2 * p.beta)
    return 2 * (target - p.chosen), -2 * (target + p.rejected)


def _nca(p: Pairs) -> Weights:
    up, back, down = (torch.sigmoid(p.beta * x) for x in (-p.chosen, p.chosen, p.rejected))
    return p.beta * (up - back / 2), -p.beta * down / 2


def _apo_down(p: Pairs) -> Weights:
    pull = p.beta * _slope(p.beta * p.gap)
    return pull - p.beta * _slope(p.beta * p.chosen), -pull


def _exo(p: Pairs) -> Weights:
    target = torch.logit(torch.tensor(1 - p.label_smoothing, dtype=torch.float64)).item()
    return _opposite(p.beta * _slope(p.beta * p.gap) * (target - p.beta * p.gap))


def _orpo(p: Pairs) -> Weights:
    means = p.chosen / p.chosen_tokens, p.rejected / p.rejected_tokens
    left = tuple(-torch.expm1(mean) for mean in means)
    log_odds = (means[0] - left[0].log()) - (means[1] - left[1].log())
    pull = p.beta * torch.sigmoid(-log_odds)
    return pull / (left[0] * p.chosen_tokens), -pull / (left[1] * p.rejected_tokens)


def _dpop(p: Pairs) -> Weights:
    fell = (p.chosen < 0).to(p.chosen.dtype)
    pull = p.beta * torch.sigmoid(-p.beta * (p.gap + p.penalty * fell * p.chosen))
    return pull * (1 + p.penalty * fell), -pull


PAIR_LOSSES: Mapping[str, Callable[[Pairs], Weights]] = {
    "sigmoid": lambda p: _opposite(_logistic(p, p.gap)),
    "robust": _robust,
    "sigmoid_norm": lambda p: _per_token(p, _logistic(p, p.mean_gap)),
    "hinge": lambda p: _opposite(p.beta * (p.beta * p.gap < 1).to(p.gap.dtype)),
    "ipo": lambda p: _per_token(p, 2 * (1 / (2 * p.beta) - p.mean_gap)),
    "ipo_sum": lambda p: _opposite(2 * (1 / (2 * p.beta) - p.gap)),
    "sppo_hard": _sppo_hard,
    "nca_pair": _nca,
    "bco_pair": lambda p: (
        p.beta * torch.sigmoid(-p.beta * p.chosen),
        -p.beta * torch.sigmoid(p.beta * p.rejected),
    ),
    "apo_zero": lambda p: (
        p.beta * _slope(p.beta * p.chosen),
        -p.beta * _slope(p.beta * p.rejected),
    ),
    "apo_down": _apo_down,
    "exo_pair": _exo,
    "simpo": lambda p: _per_token(p, _logistic(p, p.mean_gap - p.margin / p.beta)),
    "orpo": _orpo,
    "dpop": _dpop,
}
"""Weight of every token of y+ and of y- for one pair, before the mean over pairs. ``sigmoid`` is
DPO; on log-probs without reference it is CPO, and with y- from the previous iterate, SPIN.
``hinge`` is SLiC scaled by beta. ``ipo`` is TRL's, on per-token means; ``ipo_sum`` the paper's.
RPO, CPO and ORPO add an NLL term: add `nll_weights` to the chosen side."""


def pair_weights(loss: str, pairs: Pairs) -> Weights:
    """w of every token of y+ and of y-, [pairs] each, under the mean over the batch's pairs.

    Raises:
        InputError: no such loss in `PAIR_LOSSES`.
    """
    if loss not in PAIR_LOSSES:
        known = ", ".join(PAIR_LOSSES)
        raise InputError(f"no closed form for the loss {loss!r}", fix=f"Known: {known}")
    chosen, rejected = PAIR_LOSSES[loss](pairs)
    return chosen / len(chosen), rejected / len(rejected)


def nll_weights(mask: Tensor, scale: float = 1.0, items: float | None = None) -> Tensor:
    """w of ``scale`` times the token-mean NLL: SFT, and the NLL term of RPO, CPO and ORPO.

    Args:
        mask: 1 where a token is trained, any shape. ORPO's covers the prompt's tokens too.
        scale: RPO's and CPO's alpha.
        items: tokens that the mean is over, when not those of this mask alone.
    """
    mask = mask.to(torch.get_default_dtype())
    return scale * mask / (mask.sum().clamp(min=1) if items is None else items)


def kto_weights(
    ratio: Tensor,
    desirable: Tensor,
    *,
    beta: float = 0.1,
    kl: float = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w of every token of a response under KTO; with ``kl=0`` APO-zero on unpaired data.

    Args:
        ratio: r = log pi(y) - log pi_ref(y), [responses].
        desirable: bool, [responses].
        kl: the batch's z0, which carries no gradient.

    Returns:
        [responses], under the mean over them.
    """
    side = torch.where(desirable, desirable_weight, -undesirable_weight)
    return side * beta * _slope(beta * (ratio - kl)) / len(ratio)


@dataclass(frozen=True)
class Rollouts:
    """A batch of sampled completions for a policy-gradient loss.

    Attributes:
        logprob: log pi(y_t), [completions, tokens], nats.
        old: log-probs under the policy that sampled, same shape.
        reference: log-probs under the KL term's reference, same shape; unused when ``beta`` is 0.
        advantage: [completions].
        mask: 1 on the completion's tokens, same shape as ``logprob``.
        low: clip below 1 - low.
        high: clip above 1 + high (CISPO: above ``high`` itself).
        beta: coefficient of the k3 estimate of the KL to the reference.
        corrected: whether that estimate is weighted by rho, TRL's ``use_bias_correction_kl`` (on by
            default there).
        max_tokens: Dr. GRPO's constant length.
        items: DAPO's and CISPO's token count of the whole step; default this batch's.
    """

    logprob: Tensor
    old: Tensor
    reference: Tensor
    advantage: Tensor
    mask: Tensor
    low: float = 0.2
    high: float = 0.2
    beta: float = 0.0
    corrected: bool = False
    max_tokens: int = 1
    items: float | None = None


_SEQUENCE_LEVEL = {"gspo": "mean", "rloo": "sum"}
"""Losses whose ratio is one per completion: from the mean or the sum of its log-ratios."""

POLICY_LOSSES = ("ppo", "bnpo", "grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo")
"""``ppo`` is the clipped loss under a token mean, which TRL calls ``bnpo``."""


def policy_weights(loss: str, batch: Rollouts) -> Tensor:
    """w of every completion token, [completions, tokens]; gradient accumulation is not divided in.

    ``c rho A 1[not clipped] + c beta (pi_ref / pi - 1)`` with the loss's normaliser c, the second
    term ``c beta rho log(pi_ref / pi)`` when corrected; CISPO clips rho and keeps the token, GSPO
    and RLOO take one rho per completion.

    Raises:
        InputError: no such loss in `POLICY_LOSSES`.
    """
    if loss not in POLICY_LOSSES:
        known = ", ".join(POLICY_LOSSES)
        raise InputError(f"no closed form for the loss {loss!r}", fix=f"Known: {known}")
    mask, advantage = batch.mask, batch.advantage.unsqueeze(-1)
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = _ratio(loss, batch, lengths)
    if loss == "cispo":
        push = ratio.clamp(max=batch.high) * advantage
    else:
        inside = torch.where(advantage > 0, ratio <= 1 + batch.high, ratio >= 1 - batch.low)
        push = ratio * advantage * inside
    pull = batch.beta * _to_reference(loss, batch, ratio, lengths)
    return _normaliser(loss, batch, lengths) * (push + pull) * mask


def _to_reference(loss: str, batch: Rollouts, ratio: Tensor, lengths: Tensor) -> Tensor:
    gap = batch.reference - batch.logprob
    pull = torch.expm1(gap)
    if not batch.corrected:
        return pull
    estimate = pull - gap
    if loss in _SEQUENCE_LEVEL:
        estimate = (estimate * batch.mask).sum(-1, keepdim=True) / lengths
    return ratio * (pull - estimate)


def _ratio(loss: str, batch: Rollouts, lengths: Tensor) -> Tensor:
    change = batch.logprob - batch.old
    if loss not in _SEQUENCE_LEVEL:
        return change.exp()
    total = (change * batch.mask).sum(-1, keepdim=True)
    return (total / lengths if _SEQUENCE_LEVEL[loss] == "mean" else total).exp()


def _normaliser(loss: str, batch: Rollouts, lengths: Tensor) -> Tensor:
    rows = len(lengths)
    if loss in ("grpo", "gspo"):
        return 1 / (rows * lengths)
    if loss == "dr_grpo":
        return torch.full_like(lengths, 1 / (rows * batch.max_tokens))
    if loss == "rloo":
        return torch.full_like(lengths, 1 / rows)
    tokens = float(batch.mask.sum().clamp(min=1))
    if loss in ("dapo", "cispo") and batch.items is not None:
        tokens = batch.items
    return torch.full_like(lengths, 1 / tokens)
