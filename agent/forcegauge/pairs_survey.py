"""Preference pairs of a dataset of any size: looked through once, then streamed again."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from forcegauge.errors import InputError
from forcegauge.pairs_input import Pair, stream_pairs


@dataclass
class LeftOut:
    """Rows that are not ranked: how many and the first one's id, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, identity: str) -> None:
        """Count one row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, identity)


@dataclass(frozen=True)
class Source:
    """A dataset as the command line names it; see `read_pairs`."""

    name: str
    split: str | None = None
    subset: str | None = None

    def pairs(self, left_out: LeftOut | None = None) -> Iterator[Pair]:
        """The pairs with a rejected answer, in the dataset's order."""
        out = left_out or LeftOut()
        for pair in stream_pairs(self.name, split=self.split, subset=self.subset, skip=out.add):
            if "rejected" in pair.responses:
                yield pair
            else:
                out.add("no rejected answer", pair.id)

    def pick(self, ids: Collection[str]) -> dict[str, Pair]:
        """The pairs of these ids."""
        found = {}
        for pair in self.pairs():
            if pair.id in ids:
                found[pair.id] = pair
                if len(found) == len(ids):
                    break
        return found


@dataclass(frozen=True)
class Survey:
    """What a first look found: all ``rows``, usable or not, and how many of them are ``pairs``.

    ``digests`` has 8 bytes per row, by its number; 0: not a pair.
    """

    rows: int
    pairs: int
    left_out: LeftOut
    digests: array[int]

    def expected(self, identity: str, run: Sequence[object]) -> str | None:
        """Hash of a pair measured in this way with this model; None for what is no pair."""
        place = number(identity)
        digest = self.digests[place] if place < len(self.digests) else 0
        return pair_hash(digest, run) if digest else None


def survey(source: Source) -> Survey:
    """Look through a dataset; raises `InputError` where it is malformed or has no pairs."""
    left_out, digests, count = LeftOut(), array("Q"), 0
    for pair in source.pairs(left_out):
        place = number(pair.id)
        digests.extend([0] * (place + 1 - len(digests)))
        digests[place] = text_digest(pair)
        count += 1
    if not count:
        fix = "Give a dataset with chosen and rejected answers"
        raise InputError(_nothing(left_out), fix=fix, file=source.name)
    return Survey(count + sum(left_out.counts.values()), count, left_out, digests)


def _nothing(left_out: LeftOut) -> str:
    if not left_out.counts:
        return "holds no rows"
    if "no rejected answer" in left_out.counts:
        return "no row has a rejected answer"
    return f"no row can be used: in the first, {next(iter(left_out.first))}"


def number(identity: str) -> int:
    """Line or row in the dataset, which the id names."""
    return int(identity.rpartition("-")[2])


def text_digest(pair: Pair) -> int:
    """64 bits of the pair's texts, never 0."""
    texts = [pair.prompt_key, pair.chosen, pair.responses["rejected"]]
    return int(hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16], 16) or 1


def pair_hash(digest: int, run: Sequence[object]) -> str:
    """What tells one measurement from others: the texts, the weights, the settings."""
    return hashlib.sha256(json.dumps([*run, digest]).encode()).hexdigest()[:16]
