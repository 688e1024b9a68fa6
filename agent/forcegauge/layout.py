"""Token layout of one scoring pass: which tokens share a forward, and what predicts what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forcegauge.encoding import TokenSequence

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One forward: token ids [rows, width], what is real in them, and what is read off it.

    ``rows[i]`` is the place in the flattened batch whose hidden state predicts ``targets[i]``,
    which is token ``slots[i]`` in the flat order of all response tokens (see `offsets`).
    """

    input_ids: IntArray
    attention_mask: IntArray
    position_ids: IntArray
    rows: IntArray
    targets: IntArray
    slots: IntArray


def offsets(sequences: Sequence[TokenSequence]) -> IntArray:
    """Where each response starts in the flat order of all response tokens; the last is the end."""
    lengths = [len(item.response) for item in sequences]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def padded_batches(sequences: Sequence[TokenSequence], budget: int) -> Iterator[Batch]:
    """Plain batches, padded on the right, of at most ``budget`` tokens (or one sequence)."""
    starts = offsets(sequences)
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while order:
        fit = max(1, budget // len(sequences[order[0]]))
        batch, order = order[:fit], order[fit:]
        yield padded([sequences[index] for index in batch], [int(starts[index]) for index in batch])


def padded(sequences: Sequence[TokenSequence], starts: Sequence[int]) -> Batch:
    """One batch padded on the right; ``starts`` as in `offsets`. Padding is known by length only:
    the pad token may be one that occurs in the text."""
    width = max(len(item) for item in sequences)
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    rows, slots = [], []
    for index, (item, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[index, : len(item)] = (*item.prompt, *item.response)
        mask[index, : len(item)] = 1
        first = index * width + len(item.prompt) - 1
        rows.append(np.arange(first, first + len(item.response)))
        slots.append(np.arange(start, start + len(item.response)))
    targets = np.concatenate([np.asarray(item.response, dtype=np.int64) for item in sequences])
    positions = np.broadcast_to(np.arange(width), ids.shape)
    return Batch(ids, mask, positions, np.concatenate(rows), targets, np.concatenate(slots))
