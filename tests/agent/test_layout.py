"""Token layouts: every response token is predicted once, from its own context only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegauge.encoding import TokenSequence
from forcegauge.layout import (
    Batch,
    CachedBatch,
    SharedBatch,
    cached_batches,
    offsets,
    padded_batches,
    shared_batches,
    shares,
)

Batches = Callable[[Sequence[TokenSequence], int], Iterator[Batch | CachedBatch]]

LAYOUTS: list[Batches] = [padded_batches, shared_batches, cached_batches]


def make(shape: list[tuple[int, list[int]]]) -> list[TokenSequence]:
    """Sequences of these prompt and response lengths in which every token id is another one."""
    ids = iter(range(1, 10**6))
    found = []
    for probe, (size, lengths) in enumerate(shape):
        prompt = tuple(next(ids) for _ in range(size))
        for place, length in enumerate(lengths):
            response = tuple(next(ids) for _ in range(length))
            found.append(TokenSequence(probe, place, prompt, response))
    return found


shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=5)),
    min_size=1,
    max_size=5,
)


def parts(batch: Batch | CachedBatch) -> list[Batch]:
    if isinstance(batch, CachedBatch):
        return [part for part in (batch.prompt, batch.responses) if part is not None]
    return [batch]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(shape=shapes, budget=st.integers(1, 80))
def test_every_response_token_is_predicted_once(
    layout: Batches, shape: list[tuple[int, list[int]]], budget: int
) -> None:
    sequences = make(shape)
    flat = [token for item in sequences for token in item.response]
    found: dict[int, int] = {}
    for batch in layout(sequences, budget):
        targets = np.concatenate([part.targets for part in parts(batch)])
        for slot, target in zip(batch.slots.tolist(), targets.tolist(), strict=True):
            assert slot not in found
            found[slot] = target
    assert [found[slot] for slot in range(len(flat))] == flat


@pytest.mark.parametrize("layout", LAYOUTS)
@given(shape=shapes, budget=st.integers(1, 80))
def test_a_token_is_predicted_by_the_token_before_it(
    layout: Batches, shape: list[tuple[int, list[int]]], budget: int
) -> None:
    sequences = make(shape)
    before = {
        after: (first, place)
        for item in sequences
        for place, (first, after) in enumerate(
            zip((item.prompt + item.response)[:-1], (item.prompt + item.response)[1:], strict=True)
        )
        if place >= len(item.prompt) - 1
    }
    for batch in layout(sequences, budget):
        for part in parts(batch):
            tokens = part.input_ids.reshape(-1)[part.rows].tolist()
            positions = part.position_ids.reshape(-1)[part.rows].tolist()
            wanted = [before[target] for target in part.targets.tolist()]
            assert list(zip(tokens, positions, strict=True)) == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
@given(shape=shapes)
def test_a_batch_keeps_to_its_budget(layout: Batches, shape: list[tuple[int, list[int]]]) -> None:
    sequences = make(shape)
    budget = max(len(item) for item in sequences) + 5
    assert all(batch.tokens <= budget for batch in layout(sequences, budget))


def test_a_shared_row_holds_each_prompt_once() -> None:
    sequences = make([(4, [3, 2]), (5, [1, 6])])
    (row,) = shared_batches(sequences, 100)
    assert sorted(
        zip((b.start for b in row.blocks), (b.prompt for b in row.blocks), strict=True)
    ) == [
        (0, 5),
        (10, 4),
    ]
    assert row.tokens == (5 + 0 + 5) + (4 + 2 + 1), "the last token of a response is left out"
    assert row.position_ids.tolist()[0] == [*range(5), *range(5, 10), *range(4), 4, 5, 4]


def test_a_prompt_whose_responses_exceed_the_budget_is_taken_again() -> None:
    sequences = make([(10, [5, 5, 5])])
    assert shares(sequences, 18) == [(0, 1), (2,)]
    assert [row.tokens for row in shared_batches(sequences, 18)] == [18, 14]


def test_rows_are_filled_with_what_fits() -> None:
    sequences = make([(10, [1]), (6, [1]), (4, [1]), (3, [1])])
    assert [row.tokens for row in shared_batches(sequences, 13)] == [13, 10]


def test_the_same_sequences_make_the_same_rows() -> None:
    sequences = make([(7, [4, 4]), (7, [4, 4]), (2, [9])])
    first, second = (list(shared_batches(sequences, 20)) for _ in range(2))
    assert [a.input_ids.tolist() for a in first] == [b.input_ids.tolist() for b in second]


def test_single_token_responses_need_no_second_forward() -> None:
    (batch,) = cached_batches(make([(3, [1, 1])]), 100)
    assert batch.responses is None
    assert batch.prompt.rows.tolist() == [2, 2]


def test_offsets_are_where_responses_start() -> None:
    assert offsets(make([(3, [2, 4]), (1, [1])])).tolist() == [0, 2, 6, 7]


def test_a_shared_row_is_a_batch() -> None:
    (row,) = shared_batches(make([(3, [2])]), 10)
    assert isinstance(row, SharedBatch)
    assert row.attention_mask.tolist() == [[1, 1, 1, 1]]
