"""How much a preference pair would displace or squeeze, measured before any training.

Everything comes from one forward of the pair. The gradient of log pi(y_t) with respect to the
head's weights is the outer product of the residual e_y - pi and the hidden state h that predicts
y_t, so inner products of two responses' gradients need only the products of residuals and of
hidden states, token by token, and never a gradient of the size of the head.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from forcegauge import head as heads
from forcegauge import ways
from forcegauge.attention import attending, shared_row
from forcegauge.encoding import TokenSequence, encode_prompt, encode_response
from forcegauge.errors import InputError
from forcegauge.forces import TokenForces, force_sums
from forcegauge.head import Head
from forcegauge.layout import Batch, SharedBatch, offsets, padded_batches, shared_batches
from forcegauge.pairs_input import Pair

TOKEN_BUDGET = 4096
"""Tokens of one forward, and of the pairs that are measured together, whose hidden states are
held at once."""
ROWS = 512
"""Tokens whose residuals, each of the size of the vocabulary, are held at once (twice)."""


@dataclass(frozen=True)
class TokenPair:
    """A preference pair as token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer response."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def shared(self) -> int:
        """Tokens that both responses begin with: their forces cancel there."""
        tokens = zip(self.chosen, self.rejected, strict=False)
        return sum(1 for _ in takewhile(lambda both: both[0] == both[1], tokens))


@dataclass(frozen=True)
class PairValues:
    """What is known of one pair; log-probs in nats, g the gradient of a response's summed log-prob
    with respect to the head (of a tied matrix: its use as the head alone)."""

    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int
    shared_prefix_tokens: int
    chosen_logprob_sum: float
    rejected_logprob_sum: float
    chosen_logprob_mean: float
    rejected_logprob_mean: float
    preference_margin_nats: float
    """Chosen minus rejected, per token."""
    entanglement: float
    """rho+ = <g+, g-> / ||g+||^2 (Yuan et al., 2024): above 1 a step that raises the margin with
    equal weights on both, as DPO's first does, lowers chosen."""
    predicted_chosen_change: float
    """||g+||^2 - <g+, g->: change of log pi(chosen) per unit of learning rate times DPO's weight
    w (beta/2 at the start), through the head."""
    predicted_rejected_change: float
    """<g+, g-> - ||g-||^2, the same for rejected."""
    chosen_gradient_norm: float
    rejected_gradient_norm: float
    ches: float
    """Length-normalised CHES (Razin et al., 2024): <m+, m-> - ||m+||^2 with m the mean of the
    final hidden states from the last prompt token to the second last of the response."""
    squeeze_law_nats: float
    """Sum of (||pi||^2 - pi_y)_+ over the net push-down (design section 6), per unit of weight."""
    squeeze_law_ratio: float
    """The same per token that is pushed down, 0 to 1; NaN where none is."""


def encode_pair(
    tokenizer: Any,
    pair: Pair,
    *,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> TokenPair:
    """Token ids of a pair; truncation keeps the end of the prompt and the start of a response."""
    prompt = encode_prompt(tokenizer, pair.prompt)[-(max_prompt_tokens or 0) :]
    chosen, rejected = (
        encode_response(tokenizer, pair.responses[name])[:max_response_tokens]
        for name in ("chosen", "rejected")
    )
    return TokenPair(tuple(prompt), tuple(chosen), tuple(rejected))


def unfit(pair: TokenPair, model: nn.Module) -> str:
    """Why the model cannot take this pair, empty when it can; raises `InputError` for tokens that
    it does not know."""
    inner: Any = heads.inner_model(model) or model
    context = getattr(heads.text_config(model), "max_position_embeddings", None)
    vocabulary = inner.get_input_embeddings().num_embeddings
    if not (pair.chosen and pair.rejected):
        return "a response has no tokens"
    if (largest := max(*pair.prompt, *pair.chosen, *pair.rejected)) >= vocabulary:
        problem = f"the tokenizer gives token {largest} and the model knows {vocabulary} tokens"
        raise InputError(problem, fix="use the model's own tokenizer", field="--model")
    return f"over {context} tokens, the model's context" if pair.longest > (context or 1e18) else ""


class PairMeter:
    """Measures pairs with one model, whose weights and settings stay as they are.

    ``first`` are pairs on which the way to run forwards is chosen, by comparing with the plainest
    (see `forcegauge.ways`). Raises `InputError` for a model whose head cannot be read.
    """

    def __init__(
        self, model: nn.Module, first: Sequence[TokenPair], *, token_budget: int = TOKEN_BUDGET
    ) -> None:
        self.model = model
        self.head = heads.head_of(model)
        self.token_budget = token_budget
        with torch.no_grad():
            choice = ways.choose(model, _sequences(first), token_budget)
        if choice.reading != "head":
            problem = "the model makes its logits in a way of its own, so its head cannot be read"
            raise InputError(problem, fix="use a model that ends in one linear head")
        self.way = choice.way

    @torch.no_grad()
    def measure(self, pairs: Sequence[TokenPair]) -> Iterator[PairValues]:
        """Values of each pair, one by one; the hidden states of all of them are held at once."""
        sequences = _sequences(pairs)
        hidden = self._hidden(sequences)
        starts = offsets(sequences)[:-1:2].tolist()
        for pair, start in zip(pairs, starts, strict=True):
            yield _values(pair, self.head, hidden[start : start + len(pair) - len(pair.prompt)])

    def _hidden(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Hidden states that predict the response tokens, [tokens, hidden], in flat order."""
        flat: Tensor | None = None
        for batch in self._batches(sequences):
            found = _hidden_of(self.model, self.head, batch)
            if flat is None:
                flat = found.new_empty(int(offsets(sequences)[-1]), found.shape[-1])
            flat[torch.from_numpy(batch.slots).to(flat.device)] = found
        return torch.empty(0) if flat is None else flat

    def _batches(self, sequences: Sequence[TokenSequence]) -> Iterator[Batch]:
        if self.way == "shared":
            return shared_batches(sequences, self.token_budget)
        return padded_batches(sequences, 1 if self.way == "single" else self.token_budget)


def _sequences(pairs: Sequence[TokenPair]) -> list[TokenSequence]:
    return [
        TokenSequence(index, place, pair.prompt, response)
        for index, pair in enumerate(pairs)
        for place, response in enumerate((pair.chosen, pair.rejected))
    ]


def _hidden_of(model: nn.Module, head: Head, batch: Batch) -> Tensor:
    """What the head is given for the batch's rows, [rows, hidden]; it computes one row only."""
    device = next(model.parameters()).device
    rows = torch.from_numpy(batch.rows).to(device)
    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        kept.append(hidden[rows])
        return hidden[:1]

    inputs, attention = _inputs(model, batch, device)
    with attention, heads.replaced_hidden(head, keep):
        model(**inputs)
    return kept[0]


def _inputs(
    model: nn.Module, batch: Batch, device: torch.device
) -> tuple[dict[str, Any], AbstractContextManager[None]]:
    ids, mask = (
        torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.attention_mask)
    )
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= heads.accepted(model, {"use_cache": False, "return_dict": True})
    if not isinstance(batch, SharedBatch):
        return inputs, nullcontext()
    inputs["position_ids"] = torch.from_numpy(batch.position_ids.copy()).to(device)
    return inputs, attending(model, shared_row(batch.blocks, device))


def _values(pair: TokenPair, head: Head, hidden: Tensor) -> PairValues:
    """``hidden`` [tokens of chosen, then of rejected, hidden]."""
    labels = torch.tensor([*pair.chosen, *pair.rejected], device=hidden.device)
    gram, tokens = head_gram(head, hidden, labels)
    # many small sums follow, in float64: on the CPU they cost no round trip each
    gram, tokens = gram.cpu(), tokens.cpu()
    ours, theirs = len(pair.chosen), len(pair.rejected)
    chosen, rejected = tokens.logprob.double().split([ours, theirs])
    sums = force_sums(_net(pair, tokens))
    means = chosen.mean().item(), rejected.mean().item()
    return PairValues(
        prompt_tokens=len(pair.prompt),
        chosen_tokens=ours,
        rejected_tokens=theirs,
        shared_prefix_tokens=pair.shared,
        chosen_logprob_sum=chosen.sum().item(),
        rejected_logprob_sum=rejected.sum().item(),
        chosen_logprob_mean=means[0],
        rejected_logprob_mean=means[1],
        preference_margin_nats=means[0] - means[1],
        **entanglement(gram, ours, pair.shared),
        ches=ches(hidden, ours),
        squeeze_law_nats=sums["drain"],
        squeeze_law_ratio=sums["drain"] / sums["push"] if sums["push"] else math.nan,
    )


def entanglement(gram: Tensor, chosen: int, shared: int) -> dict[str, float]:
    """Entanglement and predicted changes from the tokens' inner products [tokens, tokens].

    The first ``chosen`` tokens are the chosen response's, the rest the rejected one's; both begin
    with ``shared`` equal tokens. What these would add and take again is left out of differences,
    so that it cannot drown them.
    """
    up = torch.zeros(len(gram), dtype=torch.float64)
    up[:chosen] = 1.0
    down = 1.0 - up
    force = up - down
    force[:shared] = force[chosen : chosen + shared] = 0.0
    products = gram.double()
    change, rejected_change = (float(side @ products @ force) for side in (up, down))
    norm, rejected_norm = (float(side @ products @ side) for side in (up, down))
    return {
        "entanglement": 1.0 - change / norm if norm > 0 else math.nan,
        "predicted_chosen_change": change,
        "predicted_rejected_change": rejected_change,
        "chosen_gradient_norm": math.sqrt(max(norm, 0.0)),
        "rejected_gradient_norm": math.sqrt(max(rejected_norm, 0.0)),
    }


def ches(hidden: Tensor, chosen: int) -> float:
    """Length-normalised CHES in float32: hidden states [tokens, hidden] that predict the tokens of
    chosen (the first ``chosen`` ones) and of rejected."""
    ours, theirs = hidden[:chosen].float().mean(0), hidden[chosen:].float().mean(0)
    return float(ours @ (theirs - ours))


@dataclass(frozen=True)
class _Tokens:
    """Of each token, [tokens]: log pi_y, 1 - pi_y, the sum of pi_v^2 over v != y, and y."""

    logprob: Tensor
    energy: Tensor
    rest: Tensor
    labels: Tensor

    def cpu(self) -> _Tokens:
        return _Tokens(self.logprob.cpu(), self.energy.cpu(), self.rest.cpu(), self.labels.cpu())


def head_gram(head: Head, hidden: Tensor, labels: Tensor) -> tuple[Tensor, _Tokens]:
    """Inner products of the gradients of log pi(y_t) with respect to the head, float32.

    Args:
        head: the model's head; its scaling, soft-capping and bias count.
        hidden: what it is given, [tokens, hidden].
        labels: y, [tokens].

    Returns:
        [tokens, tokens], (h_m . h_l) (e_m - pi_m) . (e_l - pi_l), and statistics of the tokens.
    """
    states = hidden.float()
    gram = states @ states.T
    if getattr(head.module, "bias", None) is not None:
        gram += 1.0
    parts = [slice(start, start + ROWS) for start in range(0, len(labels), ROWS)]
    found = []
    for place, rows in enumerate(parts):
        residual, tokens = _residuals(head, hidden[rows], labels[rows])
        found.append(tokens)
        gram[rows, rows] *= residual @ residual.T
        for others in parts[:place]:
            product = residual @ _residuals(head, hidden[others], labels[others])[0].T
            gram[rows, others] *= product
            gram[others, rows] *= product.T
    names = ("logprob", "energy", "rest", "labels")
    return gram, _Tokens(*(torch.cat([getattr(part, name) for part in found]) for name in names))


def _residuals(head: Head, hidden: Tensor, labels: Tensor) -> tuple[Tensor, _Tokens]:
    """d log pi(y) / d (output of the head's matrix), [tokens, vocab], and statistics."""
    logits, places = head.logits(hidden), labels[:, None]
    slope = head.scale if head.cap is None else head.scale * (1 - (logits / head.cap) ** 2)
    logprobs = logits.log_softmax(-1)
    logprob = logprobs.gather(1, places)[:, 0]
    # 1 - pi_y is summed from the others: as a difference it would be lost near certainty
    others = logprobs.exp_().scatter_(1, places, 0.0)
    energy = others.sum(1)
    rest = torch.linalg.vector_norm(others, dim=1) ** 2
    residual = others.neg_().scatter_(1, places, energy[:, None])
    return residual.mul_(slope), _Tokens(logprob, energy, rest, labels)


def _net(pair: TokenPair, tokens: _Tokens) -> TokenForces:
    """Forces of a loss that pulls chosen up and pushes rejected down with equal weight; the first
    tokens that differ still have one context."""
    ours = len(pair.chosen)
    up, down = torch.arange(ours), torch.arange(len(pair.rejected))
    source = torch.cat([torch.zeros_like(up), torch.ones_like(down)])
    return TokenForces(
        weight=1.0 - 2.0 * source.double(),
        logprob=tokens.logprob.double(),
        energy=tokens.energy.double(),
        rest=tokens.rest.double(),
        context=torch.cat([up, torch.where(down <= pair.shared, down, down + ours + 1)]),
        label=tokens.labels,
        source=source,
    )


def weights_hash(model: nn.Module) -> str:
    """Short hash that tells models apart: names, shapes and the first numbers of all weights."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        first = weight.detach().flatten()[:16].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} ".encode() + first)
    return digest.hexdigest()[:16]
