"""One look at the model under training: scores, layout noise and greedy outputs, undisturbed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import nn

from forcegauge import budget as budgets
from forcegauge.behaviour import DECODED_PROBES, Behaviour, with_greedy
from forcegauge.failures import Guard
from forcegauge.isolation import evaluation_weights, undisturbed
from forcegauge.pace import Cost
from forcegauge.probes import ProbeSet
from forcegauge.ranks import everyone
from forcegauge.reference import Reference
from forcegauge.rotation import Rotation
from forcegauge.scorer import TOKEN_BUDGET, Scorer
from forcegauge.scores import Scores
from forcegauge.sharding import as_wrapped

logger = logging.getLogger("forcegauge")


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
    """Looks at a model with one probe set, whole or in parts (see `Rotation`).

    The first look's greedy outputs become the response type ``greedy`` of all of them, unless
    ``texts`` is false. ``max_memory`` is what a look may add in bytes; None takes a part of what
    an accelerator has free at the first look. All ranks have to make the same calls.
    """

    optimizer: Any = None
    """The training's, where it may be a schedule-free one."""

    def __init__(
        self,
        probe_set: ProbeSet,
        tokenizer: Any,
        limits: Limits,
        texts: bool,
        guard: Guard,
        max_memory: int | None = None,
    ) -> None:
        self._probe_set, self._tokenizer, self._limits = probe_set, tokenizer, limits
        self._texts, self._guard, self._max_memory = texts, guard, max_memory
        self.reference = Reference(None)
        self._behaviour: Behaviour | None = None
        self._scorer: Scorer | None = None
        self._rotation: Rotation | None = None
        self._began = False
        self._share: int | None = None
        self._halved, self._lacks = 0, 0
        self._decoding = 0.0
        self._took: tuple[float, float] | None = None

    def resume(self, greedy: Mapping[str, str]) -> None:
        """Take the baseline's greedy outputs, by probe id, from an earlier process."""
        if greedy:
            self._scorer = self._make_scorer(greedy)

    def look(
        self, model: nn.Module, step: int, *, noise: bool, parts: int = 1, turn: int = 0
    ) -> Look:
        """Score the model as it is, and the layout noise too; raises what scoring raises.

        With ``parts`` it scores the part of this ``turn``, and decodes at the first of each round.
        """
        self._took = None
        weights = evaluation_weights(self.optimizer)
        with undisturbed(model), weights, as_wrapped(model):
            self._begin(model)
            found = self._behave(model, step) if turn % parts == 0 else ({}, {})
            behaviour, outputs = found
            if self._scorer is None:
                # all ranks or none: what they score is their outputs of this very look
                with everyone().together():
                    scorer = self._make_scorer(outputs if self._texts else {})
                self._scorer = scorer
            scores = self._score(self._scorer, model, parts, turn)
            measured = self._scorer.noise(model) if noise else {}
            behaviour = behaviour | self._against_reference(self._scorer, model, scores, step)
        return Look(scores, measured, behaviour, outputs)

    def cost(self, seconds: float) -> Cost | None:
        """What a probe with the last look and of so many seconds tells of later ones; None where
        it failed, or was the first and had other things to do."""
        if self._took is None:
            return None
        all_, took = self._took
        return Cost(all_, max(0.0, seconds - took))

    def settle(self) -> None:
        """Take half as much at a time from the next look on where a rank lacked memory."""
        lacks = self._guard.counts["out_of_memory"]
        if max(everyone().gathered(lacks - self._lacks)):
            self._halved += 1
            if self._scorer is not None:
                self._scorer.halve()
            logger.warning("probes take half as many tokens at a time from now on")
        self._lacks = lacks

    def _begin(self, model: nn.Module) -> None:
        """Decide once, and the same for all ranks, what a look may take."""
        if self._began:
            return
        self._began = True
        if self._max_memory is None:
            limits = everyone().gathered(budgets.free_share(next(model.parameters()).device))
            self._share = min((x for x in limits if x is not None), default=None)

    def _limit(self, scorer: Scorer, model: nn.Module) -> None:
        """A share is no order: where a single sequence takes more, more it is."""
        if self._share is not None:
            least = budgets.least(budgets.shape_of(model), scorer.sequences)
            scorer.max_memory = max(self._share, least)

    def _score(self, scorer: Scorer, model: nn.Module, parts: int, turn: int) -> Scores:
        if self._rotation is None:
            self._rotation = _rotation(scorer)
        part, first = self._rotation.part(parts, turn), scorer.way is None
        if first:
            self._limit(scorer, model)
        start = time.monotonic()
        scores = scorer.score(model, probes=part)
        took = time.monotonic() - start
        if not first:
            whole = took / self._rotation.share(part) + self._decoding
            self._took = whole, took + (self._decoding if turn % parts == 0 else 0.0)
        return scores

    def _against_reference(
        self, scorer: Scorer, model: nn.Module, scores: Scores, step: int
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        everyone().meet()
        with self._guard("scoring", step), everyone().together():
            whole = partial(scorer.score, model)
            found |= self.reference.changes(model, scores, scorer.sequences, whole)
        return found

    def _behave(self, model: nn.Module, step: int) -> tuple[dict[str, float], dict[str, str]]:
        signals: dict[str, float] = {}
        texts: dict[str, str] = {}
        start, ranks = time.monotonic(), everyone()
        ranks.meet()
        with self._guard("greedy", step), ranks.together():
            if self._behaviour is None:
                longest = self._limits.max_prompt_tokens
                self._behaviour = Behaviour(self._probe_set, self._tokenizer, longest)
            rows = self._rows(model, self._behaviour)
            outputs = self._behaviour.decode(model, rows, ranks)
            signals, texts = self._behaviour.signals(outputs), self._behaviour.texts(outputs)
        self._decoding = time.monotonic() - start
        return signals, texts

    def _rows(self, model: nn.Module, behaviour: Behaviour) -> int:
        rows = max(1, DECODED_PROBES >> self._halved)
        limit = self._share if self._max_memory is None else self._max_memory
        if limit is None:
            return rows
        return budgets.decoding_rows(budgets.shape_of(model), behaviour.width, rows, limit)

    def _make_scorer(self, greedy: Mapping[str, str]) -> Scorer:
        return Scorer(
            with_greedy(self._probe_set, greedy),
            self._tokenizer,
            **asdict(self._limits),
            token_budget=max(1, TOKEN_BUDGET >> self._halved),
            max_memory=self._max_memory,
            ranks=everyone(),
        )


def _rotation(scorer: Scorer) -> Rotation:
    """Parts of what a scorer scores; a probe is as long as its prompt and all responses."""
    tokens = [0] * len(scorer.probe_set)
    for item in scorer.sequences:
        tokens[item.probe] = (tokens[item.probe] or len(item.prompt)) + len(item.response)
    return Rotation([probe.responses.keys() for probe in scorer.probe_set.probes], tokens)
