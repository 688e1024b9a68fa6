"""Probes and training samples as token sequences, and the weight w of each trained token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcegauge import losses
from forcegauge.encoding import TokenSequence, encode_prompt, encode_response
from forcegauge.errors import InputError
from forcegauge.losses import PAIR_LOSSES, POLICY_LOSSES
from forcegauge.pairs_input import Pair, read_pairs
from forcegauge.textfiles import read_lines

LOSSES = ("sft", "dpo", *PAIR_LOSSES, *POLICY_LOSSES)
"""Names of losses; ``dpo`` is ``sigmoid``."""

REFERENCE_FREE = ("simpo", "orpo")
"""Losses of pairs that look at log-probs themselves, not at their ratio to a reference."""


@dataclass(frozen=True)
class Loss:
    """What the samples are trained with.

    Attributes:
        name: one of `LOSSES`.
        beta: the loss's beta; default 0.1 for pairs, 0 (no pull to the reference) for rollouts.
    """

    name: str = "sft"
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(
                f"unknown loss {self.name!r}", fix=f"Known: {', '.join(LOSSES)}", field="--loss"
            )

    @property
    def sides(self) -> tuple[str, ...]:
        """What a sample's sequences are called: its values of the label ``updated``."""
        return ("chosen", "rejected") if self._of_pairs else ("completion",)

    @property
    def strength(self) -> float:
        """beta, or the loss's default."""
        return self.beta if self.beta is not None else 0.1 if self._of_pairs else 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether w depends on a reference model's log-probs."""
        if self._of_pairs:
            return self.name not in REFERENCE_FREE
        return self.name != "sft" and self.strength > 0

    @property
    def needs_advantages(self) -> bool:
        """Whether every sample brings its advantage along."""
        return self.name in POLICY_LOSSES

    @property
    def _of_pairs(self) -> bool:
        return self.name == "dpo" or self.name in PAIR_LOSSES

    def weights(
        self,
        policy: Sequence[Tensor],
        reference: Sequence[Tensor] | None,
        advantages: Sequence[float] | None,
    ) -> list[Tensor]:
        """w_t = -dL/dlog pi(y_t) of every row, each sample a batch of its own.

        Args:
            policy: log-probs of each row, [tokens]; a pair's rows follow each other.
            reference: the same of the reference model. None stands for the policy itself: w as at
                the first step of training.
            advantages: one for each row, for policy losses.
        """
        reference = policy if reference is None else reference
        if self.name == "sft":
            return [torch.full_like(row, 1 / len(row)) for row in policy]
        if self._of_pairs:
            return self._pair_weights(policy, reference)
        return [
            self._rollout_weights(row, other, advantage)
            for row, other, advantage in zip(policy, reference, advantages or (), strict=True)
        ]

    def _pair_weights(self, policy: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
        sums = torch.stack([row.sum() for row in policy])
        if self.needs_reference:
            sums = sums - torch.stack([row.sum() for row in reference])
        tokens = torch.tensor([float(len(row)) for row in policy])
        name = "sigmoid" if self.name == "dpo" else self.name
        pairs = losses.Pairs(sums[::2], sums[1::2], tokens[::2], tokens[1::2], beta=self.strength)
        chosen, rejected = PAIR_LOSSES[name](pairs)
        if name == "orpo":
            chosen = chosen + 1 / tokens[::2]
        both = torch.stack([chosen, rejected], dim=1).flatten()
        return [torch.full_like(row, float(w)) for row, w in zip(policy, both, strict=True)]

    def _rollout_weights(self, row: Tensor, reference: Tensor, advantage: float) -> Tensor:
        """On the policy that is looked at rho is 1: nothing is clipped."""
        batch = losses.Rollouts(
            logprob=row[None],
            old=row[None],
            reference=reference[None],
            advantage=torch.tensor([advantage]),
            mask=torch.ones(1, len(row)),
            beta=self.strength,
        )
        return losses.policy_weights(self.name, batch)[0]


@dataclass(frozen=True)
class Samples:
    """Training samples, and their sequences one after the other: two for a preference pair.

    A sequence's ``probe`` is its sample, its ``type`` the place of its side in ``sides``.
    """

    pairs: tuple[Pair, ...]
    sides: tuple[str, ...]
    sequences: tuple[TokenSequence, ...]
    advantages: tuple[float, ...] | None = None

    def text(self, row: int) -> str:
        """The response of a row."""
        item = self.sequences[row]
        side = self.sides[item.type]
        return self.pairs[item.probe].responses["chosen" if side == "completion" else side]


def read_samples(
    path: str,
    tokenizer: Any,
    loss: Loss,
    *,
    limit: int | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> Samples:
    """Training samples of a file in the shapes that TRL documents, evenly thinned to ``limit``.

    EOS is put behind each response, as trainers do. Policy losses need a column ``advantage``.
    Raises `InputError` for what the loss cannot be computed from.
    """
    pairs = _usable(path, loss)
    if limit is not None and len(pairs) > limit:
        pairs = [pairs[place * len(pairs) // limit] for place in range(limit)]
    sequences = []
    for index, pair in enumerate(pairs):
        prompt = encode_prompt(tokenizer, pair.prompt)[-(max_prompt_tokens or 0) :]
        for place, side in enumerate(loss.sides):
            text = pair.responses["chosen" if side == "completion" else side]
            eos = tokenizer.eos_token_id is not None
            response = encode_response(tokenizer, text, append_eos=eos)[:max_response_tokens]
            sequences.append(TokenSequence(index, place, tuple(prompt), tuple(response), eos))
    advantages = _advantages(path, pairs) if loss.needs_advantages else None
    return Samples(tuple(pairs), loss.sides, tuple(sequences), advantages)


def _usable(path: str, loss: Loss) -> list[Pair]:
    pairs = list(read_pairs(path).pairs)
    wanted = "rejected" if "rejected" in loss.sides else "chosen"
    kept = [pair for pair in pairs if wanted in pair.responses]
    if not kept:
        raise InputError(
            f"the loss {loss.name} needs pairs of chosen and rejected and no row is one",
            fix="give a preference dataset, or --loss sft",
            file=path,
        )
    return kept


def _advantages(path: str, pairs: Sequence[Pair]) -> tuple[float, ...]:
    rows: list[tuple[int, Mapping[str, Any]]] = [
        (number, json.loads(text)) for number, text in read_lines(path) if text.strip()
    ]
    found = []
    for pair in pairs:
        number, row = rows[pair.row]
        value = row.get("advantage")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(
                "is missing or no number",
                fix="a policy loss needs JSONL with prompt, completion and advantage",
                file=path,
                line=number,
                field="advantage",
            )
        found.append(float(value))
    return tuple(found)


def probe_rows(
    sequences: Sequence[TokenSequence], place: int
) -> tuple[list[TokenSequence], list[Tensor]]:
    """The sequences of one response type, and weights that make the mean over its probes of
    per-token mean log-probs."""
    rows = [item for item in sequences if item.type == place]
    weights = [
        torch.full((len(item.response),), 1 / (len(item.response) * len(rows))) for item in rows
    ]
    return rows, weights
