"""Who pushes what: gradients of response types, and their products with every training row's.

A[f, u] = mean over probes o of f of <grad log pi(y_o), sum_t w_t grad log pi(y_u,t)>, in nats per
unit of learning rate, positive when training on u raises f (design section 7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from forcegauge_monitor.entk.products import Directions, Products, UnsplitError, trainable
from forcegauge_monitor.entk.rows import Batch, padded, response_logprobs

Advance = Callable[[int], object]
"""Told the number of rows after each batch."""


@contextmanager
def accumulating(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Float32 sums of the gradients of all backward passes inside, by parameter name."""
    parameters = {name: p for name, p in model.named_parameters() if name in set(names)}
    totals = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def add(total: Tensor, parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
        parameter.grad = None

    with trainable(model, names):
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(add, totals[name]))
            for name, parameter in parameters.items()
        ]
        try:
            yield totals
        finally:
            for handle in handles:
                handle.remove()


def direction(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    weights: Sequence[Tensor],
    advance: Advance = lambda rows: None,
) -> dict[str, Tensor]:
    """Gradient of sum_o sum_t weight * log pi(y_o,t) over all rows, float32, by parameter name.

    ``weights`` has [response tokens] for each sequence that the batches were made from.
    """
    with accumulating(model, names) as totals:
        for batch in batches:
            _objective(model, batch, weights).backward()
            advance(len(batch.places))
    return totals


def row_products(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], directions: Directions
) -> Tensor:
    """<direction, sum_t w_t grad log pi(y_t)> of a batch's rows, float64 [rows, directions]."""
    found = products_by_parameter(model, batch, weights, directions)
    count = len(next(iter(directions.values())))
    total = torch.zeros(len(batch.ids), count, dtype=torch.float64)
    for scores in found.values():
        total += scores.cpu()
    return total


def products_by_parameter(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], directions: Directions
) -> dict[str, Tensor]:
    """`row_products` apart by parameter."""
    rows, tokens = batch.ids.shape
    with Products(model, directions).collecting(rows, tokens) as found:
        _objective(model, batch, weights).backward()
    return found


def _objective(model: nn.Module, batch: Batch, weights: Sequence[Tensor]) -> Tensor:
    on_device = batch.to(next(model.parameters()).device)
    return (padded(weights, on_device) * response_logprobs(model, on_device)).sum()


def attribute(
    model: nn.Module,
    batches: Sequence[Batch],
    weights: Sequence[Tensor],
    directions: Directions,
    advance: Advance = lambda rows: None,
) -> Tensor:
    """`row_products` of all sequences, float64 [sequences, directions], in their own order; rows
    of sequences that are in none of the batches are NaN."""
    count = len(next(iter(directions.values())))
    table = torch.full((len(weights), count), torch.nan, dtype=torch.float64)
    for batch in batches:
        table[list(batch.places)] = row_products(model, batch, weights, directions)
        advance(len(batch.places))
    return table


def disagreeing(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], directions: Directions
) -> list[str]:
    """Parameters whose products are not what autograd finds for the batch's first row alone.

    Such a parameter is used past its module's own forward. Raises `UnsplitError` when a module
    mixes the batch's rows; a batch of one row never does.
    """
    found = products_by_parameter(model, batch, weights, directions)
    gradient = direction(model, list(directions), [batch.first()], weights)
    narrow = next(model.parameters()).dtype != torch.float32
    tolerance = 3e-2 if narrow else 1e-4
    return [
        name
        for name, each in directions.items()
        if not _close(found.get(name), each, gradient[name], tolerance)
    ]


def _close(found: Tensor | None, each: Tensor, gradient: Tensor, tolerance: float) -> bool:
    flat = each.flatten(1).float()
    expected = flat @ gradient.flatten()
    size = flat.norm(dim=1) * gradient.norm()
    got = torch.zeros_like(expected) if found is None else found[0]
    return bool(((got - expected).abs() <= tolerance * size + 1e-30).all())


def rows_that_split(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], directions: Directions
) -> bool:
    """Whether batches of several rows give each row's own products with this model."""
    try:
        return len(batch.places) == 1 or not disagreeing(model, batch, weights, directions)
    except UnsplitError:
        return False


def token_products(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], directions: Directions
) -> list[Tensor]:
    """The products of every trained token alone: w_t <direction, grad log pi(y_t)>.

    One forward-mode pass for each direction (about 2.5 forward units). Returns [tokens,
    directions] for each row of the batch; their sums over tokens are `row_products`.
    """
    device = next(model.parameters()).device
    on_device = batch.to(device)
    reader = _Reader(model)
    point = {f"model.{name}": dict(model.named_parameters())[name].detach() for name in directions}

    def read(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(reader, parameters, (on_device,))
        return found

    slopes = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for place in range(len(next(iter(directions.values())))):
            tangent = {
                f"model.{name}": each[place].to(point[f"model.{name}"])
                for name, each in directions.items()
            }
            slopes.append(jvp(read, (point,), (tangent,))[1].double().cpu())
    scores = padded(weights, batch).unsqueeze(-1) * torch.stack(slopes, dim=-1)
    return [scores[row, : len(weights[place])] for row, place in enumerate(batch.places)]


class _Reader(nn.Module):
    """A model whose forward is the log-probs of a batch's responses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return response_logprobs(self.model, batch)
