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
from transformers import AttentionInterface, PreTrainedConfig

from forcegauge.layout import Block, IntArray

NAME = "forcegauge_shared_prompt"

_HARMLESS = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


class AttentionError(Exception):
    """The model asks for something that this attention does not do."""


@dataclass(frozen=True)
class _Group:
    """Responses of about one length behind one prompt: where their tokens are, padded to
    [responses, width], where the padded places that are real go, and what sees what."""

    prompt: slice
    places: Tensor
    real: Tensor
    into: Tensor
    visible: Tensor
    count: int


@dataclass
class SharedRow:
    """What the attention has to know about one row, on the model's device."""

    prompts: Sequence[slice]
    groups: Sequence[_Group]
    longest: int
    calls: int = field(default=0)


_current: ContextVar[SharedRow | None] = ContextVar("forcegauge_shared_row", default=None)


def shared_row(blocks: Sequence[Block], device: torch.device) -> SharedRow:
    """The row that these blocks make; responses of a block are grouped by the binary order of
    their length, so that padding at most doubles the (small) work of attention."""
    groups = []
    for block in blocks:
        orders = sorted({length.bit_length() for length in block.lengths if length})
        for order in orders:
            mine = [i for i, length in enumerate(block.lengths) if length.bit_length() == order]
            groups.append(_group(block, mine, device))
    prompts = [slice(block.start, block.start + block.prompt) for block in blocks]
    longest = max(block.prompt + max(block.lengths) for block in blocks)
    return SharedRow(prompts, groups, longest)


def _group(block: Block, members: Sequence[int], device: torch.device) -> _Group:
    lengths = np.array([block.lengths[i] for i in members])
    width = int(lengths.max())
    ranks: IntArray = np.arange(width)
    real = ranks[None, :] < lengths[:, None]
    starts = np.array([block.starts[i] for i in members])
    places = starts[:, None] + np.minimum(ranks[None, :], lengths[:, None] - 1)
    visible = np.concatenate([np.ones((width, block.prompt)), np.tri(width)], axis=1)
    return _Group(
        slice(block.start, block.start + block.prompt),
        torch.from_numpy(places.reshape(-1)).to(device),
        torch.from_numpy(np.flatnonzero(real)).to(device),
        torch.from_numpy(places[real]).to(device),
        torch.from_numpy(visible.astype(bool)).to(device),
        len(members),
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


def _configs(model: nn.Module) -> Iterator[PreTrainedConfig]:
    """Every configuration that a part of the model reads its attention's name from."""
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if isinstance(config, PreTrainedConfig):
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
    _refuse_unknown(module, query, attention_mask, dropout, row, kwargs)
    row.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cap = kwargs.get("softcap")
    out = value.new_zeros(1, query.shape[1], query.shape[2], value.shape[-1])
    for part in row.prompts:
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]
        out[:, :, part] = _causal(q, k, v, scale, cap)
    for group in row.groups:
        found = _responses(group, query, key, value, scale, cap)
        out.index_copy_(2, group.into, found.index_select(2, group.real))
    return out.transpose(1, 2), None


def _refuse_unknown(
    module: nn.Module,
    query: Tensor,
    mask: Tensor | None,
    dropout: float,
    row: SharedRow,
    kwargs: dict[str, Any],
) -> None:
    unknown = [name for name, v in kwargs.items() if v is not None and name not in _HARMLESS]
    if unknown:
        raise AttentionError(f"attention with {unknown[0]} is not known")
    if mask is not None or query.shape[0] != 1:
        raise AttentionError("the model brings its own attention mask or batch")
    if dropout:
        raise AttentionError("attention dropout is on")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise AttentionError("attention is not causal")
    window = kwargs.get("sliding_window")
    if window is not None and row.longest > window:
        raise AttentionError(f"a sequence is longer than the attention window of {window}")


def _responses(
    group: _Group, query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float | None
) -> Tensor:
    """Responses of one group, [1, heads, count * width, size]. Query heads that share a key head
    are put behind each other as queries of that head, so that keys are not repeated for them."""
    count, width = group.count, len(group.visible)
    heads, fold = key.shape[1], query.shape[1] // key.shape[1]
    q = query.index_select(2, group.places)[0].unflatten(0, (heads, fold))
    q = q.unflatten(2, (count, width)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    k, v = (_behind_prompt(tensor, group) for tensor in (key, value))
    found = _attend(q, k, v, group.visible.repeat(fold, 1), scale, cap)
    rows: Tensor = found.unflatten(2, (fold, width)).permute(1, 2, 0, 3, 4)
    return rows.flatten(2, 3).flatten(0, 1).unsqueeze(0)


def _behind_prompt(tensor: Tensor, group: _Group) -> Tensor:
    """Keys or values of each response behind those of the prompt, [count, heads, tokens, size]."""
    prompt = tensor[:, :, group.prompt].expand(group.count, -1, -1, -1)
    own = tensor.index_select(2, group.places)[0].unflatten(1, (group.count, -1)).transpose(0, 1)
    return torch.cat([prompt, own], dim=2)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None) -> Tensor:
    shared = q.shape[1] != k.shape[1]
    if cap is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=shared
        )
    fold = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(fold, dim=1) for tensor in (k, v))
    visible = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    return _attend(q, k, v, visible, scale, cap)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, cap: float | None
) -> Tensor:
    if cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    scores: Tensor = torch.tanh(q @ k.transpose(2, 3) * (scale / cap)) * cap
    weights: Tensor = scores.masked_fill(~visible, -torch.inf).softmax(-1, dtype=torch.float32)
    return torch.matmul(weights.to(v.dtype), v)


AttentionInterface.register(NAME, shared_prompt_attention)
