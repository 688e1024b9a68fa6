"""Scores a probe set with a model: teacher forcing, every statistic from one pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forcegauge import head as heads
from forcegauge.encoding import TokenSequence, check_fits, encode_probes
from forcegauge.errors import InputError
from forcegauge.head import Head, HeadError, Reading
from forcegauge.layout import Batch, offsets, padded, padded_batches
from forcegauge.probes import ProbeSet
from forcegauge.reductions import Statistics
from forcegauge.scores import Scores, collect

logger = logging.getLogger(__name__)

TOKEN_BUDGET = 4096
"""Tokens of one forward; peak memory follows from it and not from the number of probes."""

TOLERANCE = 1e-4
"""Nats per token within which another way of computing must agree with the plain one."""


class Scorer:
    """Scores one probe set, encoded once, with any number of models of the same tokenizer.

    The model's weights, modules and settings are left as they are; whether dropout is on is the
    caller's business (`model.eval()`). How logits are read is chosen at first use by comparing
    with the plain way and then kept.
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
    ) -> None:
        if not len(probe_set):
            raise InputError("the probe set is empty", fix="give it at least one probe")
        self.probe_set = probe_set
        self.token_budget = token_budget
        self.sequences: Sequence[TokenSequence] = encode_probes(
            probe_set,
            tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            append_eos=append_eos,
        )
        self.reading: Reading | None = None

    @torch.no_grad()
    def score(self, model: nn.Module, *, advance: Callable[[int], None] | None = None) -> Scores:
        """Score every response; ``advance`` is told the number of tokens after each forward."""
        self._prepare(model)
        values = self._values(model, padded_batches(self.sequences, self.token_budget), advance)
        ids = tuple(probe.id for probe in self.probe_set.probes)
        return collect(ids, self.probe_set.types, self.sequences, values)

    @torch.no_grad()
    def noise(self, model: nn.Module) -> dict[str, float]:
        """Layout noise by response type, in nats: the same weights are scored twice, the second
        time in smaller batches, and the type's mean of per-token mean log-probs is compared."""
        self._prepare(model)
        whole = sum(len(item) for item in self.sequences)
        budgets = (self.token_budget, min(self.token_budget, whole) // 3)
        first, second = (
            self._values(model, padded_batches(self.sequences, budget)) for budget in budgets
        )
        difference = first["logprob"].astype(np.float64) - second["logprob"]
        starts = offsets(self.sequences)
        means = np.add.reduceat(difference, starts[:-1]) / np.diff(starts)
        place = np.array([item.type for item in self.sequences])
        return {
            name: abs(float(means[place == index].mean()))
            for index, name in enumerate(self.probe_set.types)
        }

    @property
    def tokens(self) -> int:
        """Response tokens that one pass scores."""
        return int(offsets(self.sequences)[-1])

    def _prepare(self, model: nn.Module) -> None:
        config = heads.text_config(model)
        inner: Any = heads.inner_model(model) or model
        context = getattr(config, "max_position_embeddings", None)
        check_fits(
            self.sequences, self.probe_set, context, inner.get_input_embeddings().num_embeddings
        )
        if self.reading is None:
            self.reading = choose_reading(model, _sample(self.sequences))
            logger.info("logits are read by way %r", self.reading)

    def _values(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Per-token statistics as flat arrays, whatever the batches' order."""
        head, total = heads.head_of(model), self.tokens
        values: dict[str, Any] = {}
        for batch in batches:
            found = run_padded(model, head, batch, self.reading or "logits")
            for name, tensor in found.items():
                flat = values.setdefault(name, np.full(total, np.nan, dtype=np.float32))
                flat[batch.slots] = tensor.cpu().numpy()
            if advance is not None:
                advance(len(batch.slots))
        return values


def _sample(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """A few responses of the longest and of the shortest prompt: what a check is made on."""
    by_length = sorted(sequences, key=lambda item: (len(item.prompt), item.probe))
    ends = {by_length[0].probe, by_length[-1].probe}
    return [item for probe in sorted(ends) for item in sequences if item.probe == probe][:6]


def run_padded(model: nn.Module, head: Head, batch: Batch, reading: Reading) -> Statistics:
    """Statistics of one plain batch."""
    device = next(model.parameters()).device
    inputs = plain_inputs(model, batch, device)
    rows = torch.from_numpy(batch.rows).to(device)
    targets = torch.from_numpy(batch.targets).to(device)
    return heads.read(model, head, inputs, rows, targets, reading)[0]


def plain_inputs(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Any]:
    """What a plain forward is called with; positions are the model's own: it is padded right."""
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "attention_mask": torch.from_numpy(batch.attention_mask).to(device),
    }
    return inputs | heads.accepted(model, {"use_cache": False, "return_dict": True})


def choose_reading(model: nn.Module, sample: Sequence[TokenSequence]) -> Reading:
    """The fastest reading that agrees with the plain way: the model's own logits of a padded
    batch, log_softmax in float32."""
    head, batch = heads.head_of(model), padded(sample, [int(s) for s in offsets(sample)[:-1]])
    device = next(model.parameters()).device
    plain = plain_logprobs(model, batch, device)
    inputs = plain_inputs(model, batch, device)
    readings: tuple[Reading, ...] = ("head", "rows")
    for reading in readings:
        try:
            if reading == "head" and not heads.agrees(model, head, inputs):
                continue
            found = run_padded(model, head, batch, reading)["logprob"]
        except (HeadError, RuntimeError, IndexError) as error:
            logger.info("reading logits by way %r does not work: %s", reading, error)
            continue
        if close(found, plain, next(model.parameters()).dtype):
            return reading
    logger.warning("scoring falls back on the model's logits of every token: slow, large, right")
    return "logits"


def plain_logprobs(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Log-probs [tokens] of a batch's targets, computed in the plainest way."""
    logits = heads.own_logits(model(**plain_inputs(model, batch, device)))
    picked = logits[torch.from_numpy(batch.rows).to(device)].float().log_softmax(-1)
    targets = torch.from_numpy(batch.targets).to(device)
    return picked.gather(1, targets[:, None])[:, 0]


def close(found: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probs agree within `TOLERANCE`, or within the rounding of a shorter dtype."""
    slack = 0.0 if dtype in (torch.float32, torch.float64) else 4 * torch.finfo(dtype).eps
    return torch.allclose(found, plain, rtol=slack, atol=max(TOLERANCE, 4 * slack), equal_nan=True)
