"""Token layout of one scoring pass: which tokens share a forward, and what predicts what.

Rows are not padded to one width. The sequences of a run are fixed, and so are, by a rule without
chance, the rows that they make: every pass has the same few shapes in the same order, which is
what one memory footprint, one set of compiled graphs (`torch.compile`, a graph for each shape) and
the same bits for the same weights ask for. Padding would add tokens and change none of that.
"""

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

    @property
    def tokens(self) -> int:
        """Tokens that the forward takes, padding among them."""
        return int(self.input_ids.size)


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


@dataclass(frozen=True)
class Block:
    """One prompt in a flat row with responses behind it: where each starts, and its tokens
    there. The last token of a response predicts nothing and is left out of the row."""

    start: int
    prompt: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


_ALIKE = 0.85
"""Share of the longest text's length that the others of its group have: with twice the length
allowed, attention took up to twice the time on a CPU."""


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts that are not empty, in groups of like length, the longest first."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and lengths[place] >= _ALIKE * lengths[groups[-1][0]]:
            groups[-1].append(place)
        elif lengths[place]:
            groups.append([place])
    return groups


@dataclass(frozen=True)
class SharedBatch(Batch):
    """One flat row in which responses share their prompt; positions restart behind it."""

    blocks: tuple[Block, ...]


PACKED = 2048
"""Tokens up to which several prompts share a row: larger rows only took more memory and time."""

Share = tuple[int, ...]
"""Indices of sequences that have one prompt and are laid out together."""


def shares(sequences: Sequence[TokenSequence], budget: int, *, padded: bool = False) -> list[Share]:
    """Neighbours of one probe, together as far as ``budget`` tokens go: a prompt with many
    responses is taken several times. ``padded`` counts responses as long as their longest."""
    found: list[Share] = []
    for index, item in enumerate(sequences):
        share = (*found[-1], index) if found else ()
        together = share and sequences[share[0]].probe == item.probe
        if together and _cost([sequences[i] for i in share], padded) <= budget:
            found[-1] = share
        else:
            found.append((index,))
    return found


def _cost(share: Sequence[TokenSequence], padded: bool = False) -> int:
    rests = [len(item.response) - 1 for item in share]
    return len(share[0].prompt) + (len(rests) * max(rests) if padded else sum(rests))


def shared_batches(sequences: Sequence[TokenSequence], budget: int) -> Iterator[SharedBatch]:
    """Flat rows of at most ``budget`` tokens (or one prompt with one response): the same rows, so
    the same shapes, in every pass over the same sequences."""
    starts = offsets(sequences)
    rows: list[list[Share]] = []
    room: list[int] = []
    costs = {s: _cost([sequences[i] for i in s]) for s in shares(sequences, budget)}
    for share, cost in sorted(costs.items(), key=lambda item: -item[1]):
        place = next((i for i, free in enumerate(room) if free >= cost), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(max(cost, min(budget, PACKED)))
        rows[place].append(share)
        room[place] -= cost
    for row in rows:
        texts = [[sequences[i] for i in share] for share in row]
        yield shared(texts, [[int(starts[i]) for i in share] for share in row])


def shared(row: Sequence[Sequence[TokenSequence]], starts: Sequence[Sequence[int]]) -> SharedBatch:
    """One flat row of shares; ``starts`` as in `offsets`, for each of their sequences."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    blocks = []
    for share, firsts in zip(row, starts, strict=True):
        prompt, start = share[0].prompt, len(ids)
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        places = []
        for item, first in zip(share, firsts, strict=True):
            places.append(len(ids))
            rest = len(item.response) - 1
            rows.extend((start + len(prompt) - 1, *range(len(ids), len(ids) + rest)))
            ids.extend(item.response[:-1])
            positions.extend(range(len(prompt), len(prompt) + rest))
            targets.extend(item.response)
            slots.extend(range(first, first + rest + 1))
        lengths = tuple(len(item.response) - 1 for item in share)
        blocks.append(Block(start, len(prompt), tuple(places), lengths))
    flat = np.array([ids])
    return SharedBatch(
        input_ids=flat,
        attention_mask=np.ones_like(flat),
        position_ids=np.array([positions]),
        rows=np.array(rows),
        targets=np.array(targets),
        slots=np.array(slots),
        blocks=tuple(blocks),
    )


@dataclass(frozen=True)
class CachedBatch:
    """One prompt, whose keys and values are then used by its padded responses. The prompt predicts
    the first token of each; without a second token in any there is no second forward."""

    prompt: Batch
    responses: Batch | None

    @property
    def tokens(self) -> int:
        """Tokens that both forwards take, padding among them."""
        return self.prompt.tokens + (self.responses.tokens if self.responses else 0)

    @property
    def slots(self) -> IntArray:
        """Slots of what the prompt predicts, then of what the responses predict."""
        parts = (self.prompt, self.responses)
        return np.concatenate([part.slots for part in parts if part is not None])


def cached_batches(sequences: Sequence[TokenSequence], budget: int) -> Iterator[CachedBatch]:
    """A prompt at a time with responses of at most ``budget`` tokens altogether (or one)."""
    starts = offsets(sequences)
    for share in shares(sequences, budget, padded=True):
        yield cached([sequences[i] for i in share], [int(starts[i]) for i in share])


def cached(share: Sequence[TokenSequence], starts: Sequence[int]) -> CachedBatch:
    """One prompt with these responses; ``starts`` as in `offsets`."""
    prompt = np.array([share[0].prompt], dtype=np.int64)
    size, count = prompt.shape[1], len(share)
    width = max(len(item.response) for item in share) - 1
    firsts = np.array([item.response[0] for item in share])
    positions = np.arange(size)[None, :]
    rows = np.full(count, size - 1)
    head = Batch(prompt, np.ones_like(prompt), positions, rows, firsts, np.array(starts))
    if not width:
        return CachedBatch(head, None)
    ids = np.zeros((count, width), dtype=np.int64)
    real = np.zeros((count, width), dtype=np.int64)
    for index, item in enumerate(share):
        ids[index, : len(item.response) - 1] = item.response[:-1]
        real[index, : len(item.response) - 1] = 1
    mask = np.concatenate([np.ones((count, size), dtype=np.int64), real], axis=1)
    positions = np.broadcast_to(np.arange(size, size + width), ids.shape)
    targets = np.concatenate([np.array(item.response[1:], dtype=np.int64) for item in share])
    slots = (np.array(starts)[:, None] + np.arange(1, width + 1))[real == 1]
    return CachedBatch(head, Batch(ids, mask, positions, np.flatnonzero(real), targets, slots))
