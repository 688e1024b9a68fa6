"""One look at the model under training: scores, layout noise and greedy outputs, undisturbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from forcegauge.behaviour import Behaviour, with_greedy
from forcegauge.failures import Guard
from forcegauge.isolation import undisturbed
from forcegauge.probes import ProbeSet
from forcegauge.scorer import Scorer
from forcegauge.scores import Scores


@dataclass(frozen=True)
class Limits:
    """How prompts and responses become tokens; None is no limit short of the model's context."""

    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None
    append_eos: bool = False


@dataclass(frozen=True)
class Look:
    """What one look found. ``noise`` is by response type, ``outputs`` greedy texts by probe id."""

    scores: Scores
    noise: Mapping[str, float] = field(default_factory=dict)
    behaviour: dict[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


class Prober:
    """Looks at a model with one probe set.

    The first look's greedy outputs become the response type ``greedy`` of all of them, unless
    ``texts`` is false.
    """

    def __init__(
        self, probe_set: ProbeSet, tokenizer: Any, limits: Limits, texts: bool, guard: Guard
    ) -> None:
        self._probe_set, self._tokenizer, self._limits = probe_set, tokenizer, limits
        self._texts, self._guard = texts, guard
        self._behaviour: Behaviour | None = None
        self._scorer: Scorer | None = None

    def resume(self, greedy: Mapping[str, str]) -> None:
        """Take the baseline's greedy outputs, by probe id, from an earlier process."""
        if greedy:
            self._scorer = self._make_scorer(greedy)

    def look(self, model: nn.Module, step: int, *, noise: bool) -> Look:
        """Score the model as it is, and the layout noise too; raises what scoring raises."""
        with undisturbed(model):
            behaviour, outputs = self._behave(model, step)
            if self._scorer is None:
                self._scorer = self._make_scorer(outputs if self._texts else {})
            scores = self._scorer.score(model)
            measured = self._scorer.noise(model) if noise else {}
        return Look(scores, measured, behaviour, outputs)

    def _behave(self, model: nn.Module, step: int) -> tuple[dict[str, float], dict[str, str]]:
        signals: dict[str, float] = {}
        texts: dict[str, str] = {}
        with self._guard("greedy", step):
            if self._behaviour is None:
                longest = self._limits.max_prompt_tokens
                self._behaviour = Behaviour(self._probe_set, self._tokenizer, longest)
            outputs = self._behaviour.decode(model)
            signals, texts = self._behaviour.signals(outputs), self._behaviour.texts(outputs)
        return signals, texts

    def _make_scorer(self, greedy: Mapping[str, str]) -> Scorer:
        probe_set = with_greedy(self._probe_set, greedy)
        return Scorer(probe_set, self._tokenizer, **asdict(self._limits))
