"""What reinforcement learning loses first: other candidates, and samples that differ. Pure.

Two sources. Along fixed responses: the mass of the likeliest tokens and of the runners-up (SimKO,
Peng et al. 2025, arXiv 2510.14807: as the first candidate gains what the others lose, pass@K
falls). In what the training samples anyway: whether the samples of one prompt still differ, how
long they are and whether they end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np

from forcegauge.errors import InputError
from forcegauge.scores import Scores
from forcegauge.signals import change

CANDIDATE_TYPES = ("chosen", "greedy")
"""Response types along which the candidates' mass is followed: what is wanted, and what the model
itself said before the training."""

Completion = Sequence[int]
"""Token ids of one sampled completion, EOS included where it came."""


def rl_signals(scores: Scores, baseline: Scores) -> dict[str, float]:
    """Mass of the `TOP_K` likeliest tokens, of the runners-up alone, and how both changed.

    ``top_mass_TYPE_ratio``, ``runner_up_mass_TYPE_ratio`` (ranks 2 to `TOP_K`: rank 1 is the
    argmax) and ``.._change_TYPE_ratio``, means over probes; absent where undefined.
    """
    found, levels = {}, scores.levels(baseline)
    for kind in CANDIDATE_TYPES:
        top, first = (levels.column(name, kind) for name in ("top_mass", "argmax_mass"))
        gained = change(scores, baseline, "top_mass", kind)
        passed = gained - change(scores, baseline, "argmax_mass", kind)
        found[f"top_mass_{kind}_ratio"] = top
        found[f"top_mass_change_{kind}_ratio"] = gained
        found[f"runner_up_mass_{kind}_ratio"] = top - first
        found[f"runner_up_mass_change_{kind}_ratio"] = passed
    kept = {name: values[np.isfinite(values)] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in kept.items() if values.size}


@dataclass
class _Sums:
    samples: int = 0
    tokens: int = 0
    ended: int = 0
    told: int = 0
    groups: int = 0
    agreeing: int = 0
    distinct: float = 0.0
    paired: int = 0

    def add(self, other: _Sums) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class Samples:
    """Sums over sampled completions since the last reading; O(1) memory."""

    _sums: _Sums = field(default_factory=_Sums)

    def add(
        self,
        groups: Iterable[Sequence[Completion]],
        ended: Iterable[Sequence[bool]] | None = None,
    ) -> None:
        """Add the completions of some prompts.

        Args:
            groups: for each prompt its K completions as token ids; agreement needs two or more;
                an empty one counts as an ending (or none) only.
            ended: for each completion whether it ended by itself, the same shape; None: unknown.

        Raises:
            InputError: the two differ in shape; nothing is added then.
        """
        found, listed = _Sums(), [list(map(tuple, group)) for group in groups]
        for group in listed:
            found.add(_of_group(group))
        if ended is not None:
            told = [list(map(bool, row)) for row in ended]
            if list(map(len, told)) != list(map(len, listed)):
                problem = "is not of the shape of the groups"
                raise InputError(problem, field="ended", fix="Give one value for each completion")
            found.told = sum(map(len, told))
            found.ended = sum(map(sum, told))
        self._sums.add(found)

    def take(self) -> dict[str, float]:
        """Signals of what was added since the last call; absent where undefined.

        ``sample_agreement_ratio``: share of prompts whose samples are all the same.
        ``sample_distinct_ratio``: distinct pairs of neighbouring tokens over all such pairs in the
        samples of one prompt (distinct-2, Li et al. 2016), mean over prompts.
        ``sample_length_tokens``: mean length. ``sample_ended_ratio``: share that ended by itself.
        """
        sums, self._sums = self._sums, _Sums()
        parts = {
            "sample_agreement_ratio": (sums.agreeing, sums.groups),
            "sample_distinct_ratio": (sums.distinct, sums.paired),
            "sample_length_tokens": (sums.tokens, sums.samples),
            "sample_ended_ratio": (sums.ended, sums.told),
        }
        return {name: part / whole for name, (part, whole) in parts.items() if whole}


def _of_group(group: Sequence[tuple[int, ...]]) -> _Sums:
    # a trainer may mask a sample that was cut off: that it did not end is all that is known of it
    known = [sample for sample in group if sample]
    sums = _Sums(samples=len(known), tokens=sum(map(len, known)))
    if len(known) > 1:
        pairs = [pair for sample in known for pair in pairwise(sample)]
        sums.groups, sums.agreeing = 1, int(len(set(known)) == 1)
        if pairs:
            sums.paired, sums.distinct = 1, len(set(pairs)) / len(pairs)
    return sums
