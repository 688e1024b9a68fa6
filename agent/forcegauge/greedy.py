"""Free-running greedy decoding, and how it repeats itself.

No `generate()`: it changes settings and is slow under sharding. A plain loop with the model's own
cache runs the same number of forwards with the same shapes on every rank.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

NGRAM = 4
"""Tokens in an n-gram of the repetition measures."""


def greedy_decode(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, new_tokens: int, stop: frozenset[int]
) -> list[list[int]]:
    """Greedy continuation of each prompt (token ids), cut before the first stop token.

    The caller sets evaluation mode and `no_grad`. Always ``new_tokens`` forwards.
    """
    device = next(model.parameters()).device
    tokens, mask = _left_padded(prompts, device)
    accepted = inspect.signature(_inner(model).forward).parameters
    cache = None
    out = []
    for _ in range(new_tokens):
        extra = {"position_ids": _positions(mask, tokens.shape[1]), "logits_to_keep": 1}
        result = model(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in accepted},
        )
        cache = result.past_key_values
        tokens = result.logits[:, -1].float().argmax(-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        out.append(tokens)
    return [_until(row, stop) for row in torch.cat(out, dim=1).tolist()]


def stop_tokens(model: nn.Module, tokenizer_eos: int | None) -> frozenset[int]:
    """Ids that end an output: of the generation settings, and the tokenizer's EOS."""
    settings = getattr(_inner(model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return frozenset(i for i in [*ids, tokenizer_eos] if i is not None)


def repetition(outputs: Sequence[Sequence[int]]) -> float:
    """Mean over outputs of the share of n-grams that stood earlier in the same output.

    NaN where no output is long enough to hold two n-grams.
    """
    shares = [1 - len(set(grams)) / len(grams) for o in outputs if len(grams := _ngrams(o)) > 1]
    return float(np.mean(shares)) if shares else float("nan")


def overlap(outputs: Sequence[Sequence[int]]) -> float:
    """Mean share of an output's n-grams that also occur in another prompt's output."""
    grams = [set(_ngrams(output)) for output in outputs]
    shares = []
    for i, own in enumerate(grams):
        others = set().union(*grams[:i], *grams[i + 1 :])
        if own:
            shares.append(len(own & others) / len(own))
    return float(np.mean(shares)) if len(shares) > 1 else float("nan")


def leakage(
    outputs: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
) -> float:
    """Mean share of an output's n-grams found in other prompts' answers and not in its own."""
    foreign = set().union(*(set(_ngrams(answer)) for answer in others))
    shares = []
    for output, answer in zip(outputs, own, strict=True):
        if grams := set(_ngrams(output)):
            shares.append(len(grams & (foreign - set(_ngrams(answer)))) / len(grams))
    return float(np.mean(shares)) if shares else float("nan")


def _ngrams(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]


def _until(tokens: list[int], stop: frozenset[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0]] if ends else tokens


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _positions(mask: torch.Tensor, width: int) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)[:, -width:]


def _inner(model: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
