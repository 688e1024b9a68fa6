"""Token sequences as padded batches, and the log-probs of their responses with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forcegauge.encoding import TokenSequence
from forcegauge.head import accepted, head_of


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right to one length.

    Attributes:
        places: where its rows stand in the list that they were taken from.
        ids: [rows, tokens].
        attention: 1 on real tokens, [rows, tokens].
        reads: positions whose logits predict the response, [rows, longest response].
        targets: the response's tokens, same shape.
        mask: whether a place of ``targets`` is a token of the response, same shape.
    """

    places: tuple[int, ...]
    ids: Tensor
    attention: Tensor
    reads: Tensor
    targets: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.places, *(tensor.to(device) for tensor in self._tensors))

    def first(self) -> Batch:
        """The first row alone."""
        return Batch(self.places[:1], *(tensor[:1] for tensor in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.attention, self.reads, self.targets, self.mask


def make_batches(sequences: Sequence[TokenSequence], rows: int) -> list[Batch]:
    """Batches of at most ``rows`` sequences of like length; equal sequences, equal batches."""
    order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place]), place))
    groups = [tuple(order[start : start + rows]) for start in range(0, len(order), rows)]
    return [_batch(places, [sequences[place] for place in places]) for places in groups]


def _batch(places: tuple[int, ...], sequences: Sequence[TokenSequence]) -> Batch:
    length = max(len(item) for item in sequences)
    longest = max(len(item.response) for item in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    attention = torch.zeros_like(ids)
    reads = torch.zeros(len(sequences), longest, dtype=torch.long)
    targets, mask = torch.zeros_like(reads), torch.zeros_like(reads, dtype=torch.bool)
    for row, item in enumerate(sequences):
        ids[row, : len(item)] = torch.tensor([*item.prompt, *item.response])
        attention[row, : len(item)] = 1
        size = len(item.response)
        reads[row, :size] = torch.arange(size) + len(item.prompt) - 1
        targets[row, :size] = torch.tensor(item.response)
        mask[row, :size] = True
    return Batch(places, ids, attention, reads, targets, mask)


def padded(values: Sequence[Tensor], batch: Batch) -> Tensor:
    """Per-token values of all sequences as [rows, longest response] of a batch, with zeros."""
    made = torch.zeros(batch.targets.shape, dtype=torch.float32)
    for row, place in enumerate(batch.places):
        made[row, : len(values[place])] = values[place]
    return made.to(batch.ids.device)


def response_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Float32 logits that predict the responses, [rows, longest response, vocabulary]."""
    length = batch.ids.shape[1]
    positions = torch.arange(length, device=batch.ids.device).expand(len(batch.ids), length)
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.attention,
        # one row of positions for all would mix the rows' gradients in a position embedding
        "position_ids": positions,
        "use_cache": False,
    }
    head = head_of(model).module
    if head is None:
        return _taken(model(**accepted(model, inputs)).logits, batch.reads).float()
    with _only(head, batch.reads):
        logits: Tensor = model(**accepted(model, inputs)).logits
    return logits.float()


def response_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """log pi(y_t) in nats, [rows, longest response]; what stands behind the end means nothing."""
    logits = response_logits(model, batch)
    chosen = logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


@torch.no_grad()
def all_logprobs(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    rows: int,
    advance: Callable[[int], object] = lambda rows: None,
) -> list[Tensor]:
    """log pi(y_t) of every response, [its tokens] each, float32 on the CPU; ``advance`` is told
    the number of rows after each batch."""
    device = next(model.parameters()).device
    found: dict[int, Tensor] = {}
    for batch in make_batches(sequences, rows):
        values = response_logprobs(model, batch.to(device)).cpu()
        for row, place in enumerate(batch.places):
            found[place] = values[row, : len(sequences[place].response)]
        advance(len(batch.places))
    return [found[place] for place in range(len(sequences))]


@contextmanager
def _only(head: nn.Module, reads: Tensor) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_taken(args[0], reads), *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _taken(hidden: Tensor, reads: Tensor) -> Tensor:
    rows = torch.arange(len(reads), device=reads.device).unsqueeze(1)
    return hidden[rows, reads]
