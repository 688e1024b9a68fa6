"""Scores a probe set with a model: teacher forcing, every statistic from one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from forcegauge import head as heads
from forcegauge import ways
from forcegauge.encoding import TokenSequence, check_fits, encode_probes
from forcegauge.errors import InputError
from forcegauge.head import Reading
from forcegauge.layout import offsets
from forcegauge.probes import ProbeSet
from forcegauge.ranks import ALONE, RankError, Ranks
from forcegauge.scores import Scores, collect
from forcegauge.sharding import Values, merged, shares, tensor_parallel
from forcegauge.ways import Choice, Way

TOKEN_BUDGET = 4096
"""Tokens of one forward; peak memory follows from it and not from the number of probes."""

NOISE_RESPONSES = 4
"""Responses of each type that layout noise is measured on."""


class Scorer:
    """Scores one probe set, encoded once, with any number of models of the same tokenizer.

    The model's weights, modules and settings are left as they are; whether dropout is on is the
    caller's business (`model.eval()`). How logits are read is chosen at first use by comparing
    with the plain way and then kept.

    Forwards have at most ``token_budget`` tokens, and fewer where ``max_memory`` is given and they
    would add more than so many bytes to what the model takes (see `forcegauge.budget`).

    With `forcegauge.ranks.everyone` for ``ranks`` every rank scores its share of a pass and has
    all of the scores; all of them have to call, with the same arguments.
    """

    def __init__(
        self,
        probe_set: ProbeSet,
        tokenizer: Any,
        *,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        append_eos: bool = False,
        token_budget: int = TOKEN_BUDGET,
        max_memory: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if not len(probe_set):
            raise InputError("the probe set is empty", fix="Give it at least one probe")
        self.probe_set = probe_set
        self.token_budget = token_budget
        self.max_memory = max_memory
        self._ranks = ranks
        self.sequences: Sequence[TokenSequence] = encode_probes(
            probe_set,
            tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            append_eos=append_eos,
        )
        self._choice: Choice | None = None

    @torch.no_grad()
    def score(
        self,
        model: nn.Module,
        *,
        probes: Sequence[int] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Scores:
        """Score every response, or those of the ``probes`` at these places in the probe set: then
        the rows of all others are NaN, and ``per_token`` holds what was scored.

        ``advance`` is told the number of tokens after each forward.
        """
        chosen = self._of(probes)
        values = self._values(model, self._prepare(model), chosen, advance)
        ids = tuple(probe.id for probe in self.probe_set.probes)
        return collect(ids, self.probe_set.types, chosen, values)

    @torch.no_grad()
    def noise(self, model: nn.Module) -> dict[str, float]:
        """Layout noise by response type, in nats: the same weights score up to `NOISE_RESPONSES`
        responses of the type twice, the second time in padded batches, and this is the root mean
        square of the differences of their per-token means. The mean over them changes by less."""
        choice, few = self._prepare(model), self._few()
        plain: Way = "padded" if choice.way != "padded" else "single"
        limits = (choice.budget, self.max_memory)
        tokens = ways.tokens_of(model, plain, choice.reading, few, *limits, self._ranks)
        other = Choice(plain, choice.reading, tokens)
        first, second = (self._values(model, how, few)["logprob"] for how in (choice, other))
        difference = first.astype(np.float64) - second
        starts = offsets(few)
        means = np.add.reduceat(difference, starts[:-1]) / np.diff(starts)
        place = np.array([item.type for item in few])
        return {
            name: float(np.sqrt(np.mean(means[place == index] ** 2)))
            for index, name in enumerate(self.probe_set.types)
        }

    def halve(self) -> None:
        """Take half as many tokens in a forward from the next pass on."""
        self.token_budget = max(1, self.token_budget // 2)
        if self._choice is not None:
            self._choice = replace(self._choice, budget=max(1, self._choice.budget // 2))

    def _of(self, probes: Sequence[int] | None) -> Sequence[TokenSequence]:
        """The responses of some probes, in the usual order."""
        if probes is None:
            return self.sequences
        wanted = set(probes)
        if not wanted or not wanted <= set(range(len(self.probe_set))):
            raise IndexError(f"{sorted(wanted)} are no probes of {len(self.probe_set)}")
        return [item for item in self.sequences if item.probe in wanted]

    def _few(self) -> list[TokenSequence]:
        """Some responses of each type, evenly spaced over the probes, in the usual order."""
        chosen: set[int] = set()
        for place in range(len(self.probe_set.types)):
            mine = [i for i, item in enumerate(self.sequences) if item.type == place]
            spaced = np.linspace(0, len(mine) - 1, min(len(mine), NOISE_RESPONSES))
            chosen |= {mine[int(rank)] for rank in spaced}
        return [self.sequences[index] for index in sorted(chosen)]

    @property
    def tokens(self) -> int:
        """Response tokens that one pass scores."""
        return int(offsets(self.sequences)[-1])

    @property
    def way(self) -> Way | None:
        """How passes are run (see `forcegauge.ways`), None before the first."""
        return self._choice.way if self._choice else None

    @property
    def reading(self) -> Reading | None:
        """How logits are read (see `forcegauge.head`), None before the first pass."""
        return self._choice.reading if self._choice else None

    def _prepare(self, model: nn.Module) -> Choice:
        config = heads.text_config(model)
        context = getattr(config, "max_position_embeddings", None)
        vocabulary = getattr(config, "vocab_size", None)
        check_fits(self.sequences, self.probe_set, context, vocabulary)
        if self._choice is None:
            with self._together(model):
                limits = [each for each in self._ranks.gathered(self.max_memory) if each]
                self.max_memory = min(limits, default=None)
                what = (self.sequences, self.token_budget, self.max_memory)
                choice = ways.choose(model, *what, self._ranks)
            self._choice = choice
        return self._choice

    def _values(
        self,
        model: nn.Module,
        choice: Choice,
        sequences: Sequence[TokenSequence],
        advance: Callable[[int], None] | None = None,
    ) -> Values:
        """Per-token statistics as flat arrays, whatever the order of the batches and whichever
        rank ran them."""
        parts = shares(sequences, 1 if tensor_parallel(model) else self._ranks.count)
        place = self._ranks.rank % len(parts)
        counts = [ways.forwards(choice, part.sequences) for part in parts]
        with self._together(model):
            mine = self._share(model, choice, parts[place].sequences, advance)
            for _ in range(max(counts) - counts[place]):
                ways.idle(model, self.sequences)
            found = self._ranks.gathered(mine)
        return merged(parts, found[: len(parts)])

    def _share(
        self,
        model: nn.Module,
        choice: Choice,
        sequences: Sequence[TokenSequence],
        advance: Callable[[int], None] | None,
    ) -> Values:
        head, total = heads.head_of(model), int(offsets(sequences)[-1])
        values: Values = {}
        for batch in ways.batches(choice.way, sequences, choice.budget):
            found = ways.run(model, head, batch, choice.reading)
            for name, tensor in found.items():
                flat = values.setdefault(name, np.full(total, np.nan, dtype=np.float32))
                flat[batch.slots] = tensor.cpu().numpy()
            if advance is not None:
                advance(len(batch.slots))
        return values

    @contextmanager
    def _together(self, model: nn.Module) -> Iterator[None]:
        """As `Ranks.together`; where it fails, a forward of one sequence is run at its end: FSDP
        takes a forward that an error broke off for one that still goes on."""
        self._ranks.meet()
        try:
            with self._ranks.together(model):
                yield
        except RankError:
            with self._ranks.together(model):
                ways.idle(model, self.sequences)
            raise
