"""Which probes a tick scores where the whole set does not fit: stratified parts, in turn. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

SMALLEST_PART = 8
"""Probes that a part has at least: fewer say too little about the mean."""

MOST_PARTS = 8

FEWEST_OF_TYPE = 2
"""Responses of each type that every part has, where there are so many: enough for an error."""


def most_parts(probes: int) -> int:
    """The most parts that so many probes are cut into, a power of two; 1 is no rotation."""
    parts = 1
    while parts < MOST_PARTS and probes // (2 * parts) >= SMALLEST_PART:
        parts *= 2
    return parts


class Rotation:
    """Parts of one probe set that stand for all of it.

    Every response of a probe is in its part. Probes are dealt out by their set of response types
    and then by their length, so that parts cost and represent alike; probes of types that are too
    rare to be dealt out are in several parts. ``kinds`` are each probe's response types,
    ``tokens`` its length. The same arguments give the same parts in every process.
    """

    def __init__(self, kinds: Sequence[Collection[str]], tokens: Sequence[int]) -> None:
        self._kinds = [frozenset(each) for each in kinds]
        self._tokens = tokens
        self._order = sorted(
            range(len(kinds)), key=lambda i: (sorted(self._kinds[i]), tokens[i], i)
        )
        self._dealt = cache(self._deal)

    def part(self, parts: int, turn: int) -> tuple[int, ...] | None:
        """Places of the probes of this turn, of so many ``parts``; None for all of them.

        So many turns in a row see every probe.
        """
        return None if parts <= 1 else self._dealt(parts)[turn % parts]

    def share(self, part: Sequence[int] | None) -> float:
        """The share of all tokens that these probes have."""
        if part is None:
            return 1.0
        return sum(self._tokens[i] for i in part) / sum(self._tokens)

    def _deal(self, parts: int) -> tuple[tuple[int, ...], ...]:
        hands: list[set[int]] = [set() for _ in range(parts)]
        for place, probe in enumerate(self._order):
            round_, hand = divmod(place, parts)
            # there and back again: else the first part had the shortest of every round
            hands[hand if round_ % 2 == 0 else parts - 1 - hand].add(probe)
        for turn, mine in enumerate(hands):
            self._complete(mine, turn)
        return tuple(tuple(sorted(hand)) for hand in hands)

    def _complete(self, hand: set[int], turn: int) -> None:
        """Add probes of the types that this part has too few of."""
        for kind in sorted(frozenset().union(*self._kinds)):
            missing = FEWEST_OF_TYPE - sum(kind in self._kinds[i] for i in hand)
            others = [i for i in self._order if kind in self._kinds[i] and i not in hand]
            for extra in range(min(missing, len(others))):
                hand.add(others[(turn * FEWEST_OF_TYPE + extra) % len(others)])
