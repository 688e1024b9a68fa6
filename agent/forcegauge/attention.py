"""Attention over one flat row in which several responses share their prompt.

Registered with transformers under `NAME`. A row is ``prompt, response, response, ..., prompt,
...``; each prompt attends to itself, each response to its prompt and to itself, and nothing of
size row x row is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from forcegauge.layout import Block, alike

NAME = "forcegauge_shared_prompt"

_KNOWN = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "s_aux",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


class AttentionError(Exception):
    """The model asks for something that this attention does not do."""


@dataclass(frozen=True)
class _Group:
    """Texts of about one length behind one prompt: where their tokens are in the row, padded to
    [count, width], which of these places are real, and where those go. A prompt is a group of its
    own, behind nothing. ``masks`` keeps what the layers of a forward have in common."""

    prompt: slice
    places: Tensor
    real: Tensor
    into: Tensor
    width: int
    count: int
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, fold: int, dtype: torch.dtype) -> Tensor:
        """0 where a token sees a key, of the prompt and then of its own, and -inf elsewhere:
        [fold * width, keys]. Kernels on a CPU would turn booleans into this at every layer."""
        key = (window, fold, dtype)
        if key not in self.masks:
            seen = self._visible(window).repeat(fold, 1)
            blank = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[key] = blank.masked_fill_(~seen, -torch.inf)
        return self.masks[key]

    def _visible(self, window: int | None) -> Tensor:
        lead = self.prompt.stop - self.prompt.start
        keys = torch.arange(lead + self.width, device=self.places.device)
        behind = keys[lead:, None] - keys[None, :]
        seen = behind >= 0
        return seen if window is None else seen & (behind < window)


@dataclass
class SharedRow:
    """What the attention has to know about one row, on the model's device."""

    prompts: Sequence[_Group]
    responses: Sequence[_Group]
    calls: int = field(default=0)


_current: ContextVar[SharedRow | None] = ContextVar("forcegauge_shared_row", default=None)


def shared_row(blocks: Sequence[Block], device: torch.device) -> SharedRow:
    """The row that these blocks make; responses of a block are grouped by like length."""
    prompts, responses = [], []
    for block in blocks:
        end = block.start + block.prompt
        prompts.append(_group(slice(0, 0), [block.start], [block.prompt], device))
        for mine in alike(block.lengths):
            starts, lengths = ([of[i] for i in mine] for of in (block.starts, block.lengths))
            responses.append(_group(slice(block.start, end), starts, lengths, device))
    return SharedRow(prompts, responses)


def _group(
    prompt: slice, starts: Sequence[int], lengths: Sequence[int], device: torch.device
) -> _Group:
    sizes, ranks = np.array(lengths)[:, None], np.arange(max(lengths))[None, :]
    places = np.array(starts)[:, None] + np.minimum(ranks, sizes - 1)
    real = np.flatnonzero(ranks < sizes)
    return _Group(
        prompt,
        torch.from_numpy(places.reshape(-1)).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(places.reshape(-1)[real]).to(device),
        width=max(lengths),
        count=len(lengths),
    )


@contextmanager
def attending(model: nn.Module, row: SharedRow) -> Iterator[None]:
    """While it lasts, the model's attention is this one and sees ``row``."""
    configs = {id(config): config for config in _configs(model)}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    token = _current.set(row)
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
        _current.reset(token)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every configuration that a part of the model reads its attention's name from."""
    for part in model.modules():
        config = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            yield config


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one row: query [1, heads, tokens, size], key and value with as many or fewer
    heads; returns [1, tokens, heads, size]. Raises `AttentionError` for what it does not do."""
    row = _current.get()
    if row is None:
        raise AttentionError("it is not called by a scoring pass")
    _refuse_unknown(module, query, attention_mask, dropout, kwargs)
    row.calls += 1
    rule = _Rule(
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        kwargs.get("sliding_window"),
        kwargs.get("softcap"),
        kwargs.get("s_aux"),
    )
    out = value.new_zeros(1, query.shape[1], query.shape[2], value.shape[-1])
    for group in (*row.prompts, *row.responses):
        found = _attend(group, query, key, value, rule)
        out.index_copy_(2, group.into, found)
    return out.transpose(1, 2), None


@dataclass(frozen=True)
class _Rule:
    """What a layer does besides: scale, window in tokens, soft-cap, logits of attention sinks."""

    scale: float
    window: int | None
    cap: float | None
    sinks: Tensor | None


def _refuse_unknown(
    module: nn.Module, query: Tensor, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]
) -> None:
    unknown = [name for name, v in kwargs.items() if v is not None and name not in _KNOWN]
    if unknown:
        raise AttentionError(f"attention with {unknown[0]} is not known")
    if mask is not None or query.shape[0] != 1:
        raise AttentionError("the model brings its own attention mask or batch")
    if dropout:
        raise AttentionError("attention dropout is on")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise AttentionError("attention is not causal")


def _attend(group: _Group, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
    """Attention of one group's real tokens, [1, heads, real, size]."""
    lead = group.prompt.stop - group.prompt.start
    open_window = rule.window is None or lead + group.width <= rule.window
    if not lead and open_window and rule.cap is None and rule.sinks is None:
        q, k, v = (tensor.index_select(2, group.into) for tensor in (query, key, value))
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=rule.scale, enable_gqa=shared
        )
    return _behind_prompt(group, query, key, value, None if open_window else rule.window, rule)


def _behind_prompt(
    group: _Group, query: Tensor, key: Tensor, value: Tensor, window: int | None, rule: _Rule
) -> Tensor:
    """Query heads that share a key head are put behind each other as queries of that head, so
    that keys are not repeated for them."""
    heads, fold = key.shape[1], query.shape[1] // key.shape[1]
    q = query.index_select(2, group.places)[0].unflatten(0, (heads, fold))
    q = q.unflatten(2, (group.count, group.width)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    k, v = (_with_prompt(tensor, group) for tensor in (key, value))
    if rule.cap is None and rule.sinks is None:
        mask = group.mask(window, fold, q.dtype)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=rule.scale)
    else:
        mask = group.mask(window, fold, torch.float32)
        found = _weights(q, k, mask, rule).to(v.dtype).matmul(v)
    rows: Tensor = found.unflatten(2, (fold, group.width)).permute(1, 2, 0, 3, 4)
    return rows.flatten(2, 3).flatten(0, 1).index_select(1, group.real).unsqueeze(0)


def _with_prompt(tensor: Tensor, group: _Group) -> Tensor:
    """Keys or values of each text behind those of the prompt, [count, heads, keys, size]."""
    prompt = tensor[:, :, group.prompt].expand(group.count, -1, -1, -1)
    own = tensor.index_select(2, group.places)[0].unflatten(1, (group.count, -1)).transpose(0, 1)
    return torch.cat([prompt, own], dim=2)


def _weights(q: Tensor, k: Tensor, mask: Tensor, rule: _Rule) -> Tensor:
    """Attention weights where soft-capping or sinks leave no fused kernel, in float32."""
    scores = q.matmul(k.transpose(2, 3)).float() * rule.scale
    if rule.cap is not None:
        scores = torch.tanh(scores / rule.cap) * rule.cap
    scores = scores + mask
    if rule.sinks is None:
        return scores.softmax(-1)
    heads, fold = k.shape[1], len(rule.sinks) // k.shape[1]
    sinks = rule.sinks.float().view(1, heads, fold, 1).expand(-1, -1, -1, q.shape[2] // fold)
    column = sinks.reshape(1, heads, -1, 1).expand(len(q), -1, -1, -1)
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]


AttentionInterface.register(NAME, shared_prompt_attention)
