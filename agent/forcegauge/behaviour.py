"""What the model would really say: greedy outputs of some probes, and their signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from forcegauge.encoding import encode_prompt, encode_response
from forcegauge.greedy import greedy_decode, leakage, overlap, repetition, stop_tokens
from forcegauge.probes import ProbeSet
from forcegauge.ranks import ALONE, Ranks
from forcegauge.sharding import tensor_parallel

DECODED_PROBES = 16
NEW_TOKENS = 48
"""Enough to see a loop; every token costs a forward."""


SIGNALS = (
    "greedy_repetition_ratio",
    "greedy_repetition_change_ratio",
    "greedy_overlap_ratio",
    "answer_leakage_ratio",
)
"""What is known only where outputs were decoded."""


class Behaviour:
    """Greedy outputs of the first `DECODED_PROBES` probes, `NEW_TOKENS` tokens at most."""

    def __init__(
        self, probe_set: ProbeSet, tokenizer: Any, max_prompt_tokens: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._probes = probe_set.probes[:DECODED_PROBES]
        self._prompts = [
            encode_prompt(tokenizer, probe.prompt)[-(max_prompt_tokens or 0) :]
            for probe in self._probes
        ]

    @property
    def width(self) -> int:
        """Tokens of the longest prompt with its output."""
        return max(map(len, self._prompts)) + NEW_TOKENS

    def decode(
        self, model: nn.Module, rows: int = DECODED_PROBES, ranks: Ranks = ALONE
    ) -> list[list[int]]:
        """Token ids of each output, ``rows`` of them at a time; the caller isolates the model.

        The prompts are dealt to ``ranks``, which all run as many forwards.
        """
        stop = stop_tokens(model, self._tokenizer.eos_token_id)
        every = 1 if tensor_parallel(model) else ranks.count
        most, mine = -(-len(self._prompts) // every), self._prompts[ranks.rank % every :: every]
        outputs: list[list[int]] = []
        with ranks.together(model):
            rows = min(ranks.gathered(rows))
            for first in range(0, most, rows):
                few = mine[first : first + rows] or self._prompts[:1]
                outputs += greedy_decode(model, few, new_tokens=NEW_TOKENS, stop=stop)
            said = ranks.gathered(outputs)
        return [said[place % every][place // every] for place in range(len(self._prompts))]

    def signals(self, outputs: Sequence[Sequence[int]]) -> dict[str, float]:
        """Repetition within outputs, overlap between prompts, leakage of other prompts' answers."""
        own, other = self._answers("chosen"), self._answers("other_prompt")
        found = {
            "greedy_repetition_ratio": repetition(outputs),
            "greedy_overlap_ratio": overlap(outputs),
        }
        if any(other):
            found["answer_leakage_ratio"] = leakage(outputs, own, other)
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def texts(self, outputs: Sequence[Sequence[int]]) -> dict[str, str]:
        """Outputs as text, by probe id."""
        decoded = [self._tokenizer.decode(row, skip_special_tokens=True) for row in outputs]
        return {probe.id: text for probe, text in zip(self._probes, decoded, strict=True)}

    def _answers(self, response_type: str) -> list[list[int]]:
        texts = [probe.responses.get(response_type, "") for probe in self._probes]
        return [encode_response(self._tokenizer, text) if text else [] for text in texts]


def with_greedy(probe_set: ProbeSet, texts: Mapping[str, str]) -> ProbeSet:
    """The probes with the baseline model's own greedy outputs as responses, where it said any."""
    probes = (
        replace(probe, responses={**probe.responses, "greedy": texts[probe.id]})
        if texts.get(probe.id, "").strip()
        else probe
        for probe in probe_set.probes
    )
    return ProbeSet(tuple(probes))
