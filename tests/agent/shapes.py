"""Responses of any lengths to prompts of any lengths, for property-based tests of one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from forcegauge.encoding import TokenSequence
from forcegauge.ways import Way

Shape = Sequence[tuple[int, Sequence[int]]]
"""For each probe the tokens of its prompt and of each response."""

EVERY_WAY: tuple[Way, ...] = ("shared", "cached", "padded", "single")

few = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""Few examples, since each runs a model, which a fixture made once."""


def shapes() -> st.SearchStrategy[list[tuple[int, list[int]]]]:
    """One to five probes of one to six responses."""
    lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)
    return st.lists(st.tuples(st.integers(1, 50), lengths), min_size=1, max_size=5)


def make_sequences(shape: Shape, seed: int = 0) -> list[TokenSequence]:
    """Random tokens in that shape."""
    random = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 270, (count,), generator=random).tolist())

    return [
        TokenSequence(probe, place, prompt, tokens(length))
        for probe, (size, lengths) in enumerate(shape)
        for prompt in [tokens(size)]
        for place, length in enumerate(lengths)
    ]
