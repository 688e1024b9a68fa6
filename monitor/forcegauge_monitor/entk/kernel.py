"""Norms of the kernel between responses, from gradients of random combinations of logits.

K(o, u) = J_o J_u^T has a row for every logit of o and a column for every logit of u. Only its
centred form Pi K Pi, Pi = I - 11^T/V, acts on a softmax model. For independent centred seeds a of
o and b of u, <J_o^T a, J_u^T b> = a^T K b, and its square is an unbiased estimate of
||Pi K Pi||_F^2 (Gaussian seeds), or of tr(F_o K F_u K^T) (Fisher seeds e_y^ - pi with y^ drawn
from pi). Design section 7.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from forcegauge.encoding import TokenSequence
from forcegauge.head import head_of
from forcegauge_monitor.entk.attribution import Advance
from forcegauge_monitor.entk.products import Products, trainable
from forcegauge_monitor.entk.rows import Batch, make_batches, response_logits

Kind = Literal["gaussian", "fisher"]
Role = Literal["observed", "updated"]


def seed_of(kind: Kind, role: Role, label: str, index: int) -> int:
    """A seed that depends on these alone: the same at every checkpoint, different for each role."""
    text = f"{kind}/{role}/{label}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def draw(kind: Kind, logits: Tensor, seed: int) -> Tensor:
    """One random combination of a response's logits [tokens, vocabulary], centred in each row."""
    noise = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        values = torch.randn(logits.shape, generator=noise)
        return (values - values.mean(-1, keepdim=True)).to(logits.device)
    # Gumbel noise that is the same at every checkpoint makes y^ move only where pi does
    uniform = torch.rand(logits.shape, generator=noise).clamp_(1e-20)
    gumbel = -(-uniform.log()).log()
    drawn = (logits.detach() + gumbel.to(logits.device)).argmax(-1, keepdim=True)
    return (-logits.detach().softmax(-1)).scatter_add_(
        -1, drawn, torch.ones_like(drawn, dtype=logits.dtype)
    )


def bilinear(
    model: nn.Module,
    names: Sequence[str],
    observed: Sequence[tuple[str, TokenSequence]],
    updated: Sequence[tuple[str, TokenSequence]],
    *,
    kind: Kind = "gaussian",
    seeds: int = 4,
    dtype: torch.dtype = torch.float32,
    rows: int = 8,
    advance: Advance = lambda rows: None,
) -> dict[str, Tensor]:
    """Signed values a_i^T K(o, u) b_j by parameter, float32 [observed, updated, seeds, seeds].

    Responses come with a label that fixes their seeds. The sum over parameters belongs to the
    whole kernel. ``dtype`` is how the updated responses' gradients are kept.
    """
    directions = _seeded_gradients(model, names, updated, kind, seeds, dtype)
    advance(len(updated))
    shape = (len(observed), len(updated), seeds, seeds)
    found: dict[str, Tensor] = {}
    labels = [label for label, _ in observed]
    for batch in make_batches([item for _, item in observed], rows):
        for seed, products in enumerate(_observed(model, batch, labels, kind, seeds, directions)):
            for name, scores in products.items():
                table = found.setdefault(name, torch.zeros(shape))
                table[list(batch.places), :, seed] = scores.view(-1, len(updated), seeds).cpu()
        advance(len(batch.places))
    return found


def _seeded_gradients(
    model: nn.Module,
    names: Sequence[str],
    updated: Sequence[tuple[str, TokenSequence]],
    kind: Kind,
    seeds: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """J^T b for every updated response and seed: parameter -> [updated * seeds, *shape]."""
    known = dict(model.named_parameters())
    parameters = {name: known[name] for name in names}
    count = len(updated) * seeds
    kept = {
        name: torch.zeros(count, *p.shape, dtype=dtype, device=p.device)
        for name, p in parameters.items()
    }
    device = next(model.parameters()).device
    for place, (label, item) in enumerate(updated):
        with trainable(model, names):
            logits = response_logits(model, make_batches([item], 1)[0].to(device))[0]
            for seed in range(seeds):
                value = (draw(kind, logits, seed_of(kind, "updated", label, seed)) * logits).sum()
                gradients = torch.autograd.grad(
                    value, list(parameters.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        kept[name][place * seeds + seed].copy_(gradient)
    return kept


def _observed(
    model: nn.Module,
    batch: Batch,
    labels: Sequence[str],
    kind: Kind,
    seeds: int,
    directions: dict[str, Tensor],
) -> list[dict[str, Tensor]]:
    """For each seed of the observed responses, products by parameter [rows, updated * seeds]."""
    on_device = batch.to(next(model.parameters()).device)
    found = []
    with Products(model, directions).collecting(*batch.ids.shape) as products:
        logits = response_logits(model, on_device)
        for seed in range(seeds):
            combination = torch.zeros_like(logits)
            for row, place in enumerate(batch.places):
                size = int(batch.mask[row].sum())
                number = seed_of(kind, "observed", labels[place], seed)
                combination[row, :size] = draw(kind, logits[row, :size], number)
            (combination * logits).sum().backward(retain_graph=True)
            found.append(dict(products))
            products.clear()
    return found


def squared_norms(values: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate of ||Pi K Pi||_F^2 and the variance of that estimate, both unbiased, [...].

    ``values`` are bilinear values [..., seeds of o, seeds of u]. Squares of one row or column share
    a seed, so the variance is the mean squared less the mean product of squares that share none.
    """
    squares = values.double().square()
    left, right = squares.shape[-2:]
    mean = squares.mean((-1, -2))
    apart = (
        squares.sum((-1, -2)).square()
        - squares.sum(-1).square().sum(-1)
        - squares.sum(-2).square().sum(-1)
        + squares.square().sum((-1, -2))
    ) / (left * (left - 1) * right * (right - 1))
    return mean, mean.square() - apart


def pooled_norm(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square of ||Pi K Pi||_F over probes, each divided by ``scale``, with its standard
    error from the seeds: [...].

    ``values`` are [probes, ..., seeds, seeds], ``scale`` [probes, ...]; probes that lack a response
    are NaN and left out.
    """
    mean, variance = squared_norms(values)
    mean, variance = mean / scale.square(), variance / scale.pow(4)
    count = mean.isfinite().sum(0).double()
    norm = (mean.nansum(0) / count).sqrt()
    error = variance.nansum(0).clamp(min=0).sqrt() / count
    return norm, error / (2 * norm)


@torch.no_grad()
def head_squared_norm(model: nn.Module, one: TokenSequence, other: TokenSequence) -> float:
    """The head's own part of ||Pi K Pi||_F^2 in closed form: (V - 1) sum_ml (h_m . h_l)^2.

    Exact for the weight of an untied linear head; h are the final hidden states that predict the
    two responses' tokens.
    """
    head = head_of(model)
    hidden: list[Tensor] = []
    if head.module is None:
        raise ValueError("the model names no output head")
    handle = head.module.register_forward_hook(lambda module, args, out: hidden.append(args[0][0]))
    try:
        device = next(model.parameters()).device
        for item in (one, other):
            vocabulary = response_logits(model, make_batches([item], 1)[0].to(device)).shape[-1]
    finally:
        handle.remove()
    similarity = head.scale**2 * (hidden[0].double() @ hidden[1].double().T)
    return (vocabulary - 1) * float(similarity.square().sum())
