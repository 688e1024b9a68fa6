"""How much memory a forward needs, and the number of tokens that keeps to a limit.

The model of the cost counts what is alive at the worst moment of a forward without gradients: one
layer's activations, keys and values as the way of the pass lays them out, or the head's rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from forcegauge import head as heads
from forcegauge.encoding import TokenSequence
from forcegauge.errors import InputError
from forcegauge.head import Reading
from forcegauge.layout import Batch, CachedBatch, SharedBatch, alike
from forcegauge.products import BLOCK, widened
from forcegauge.reductions import CHUNK, ROWS, tile_size

_SLACK = 1.5
"""What allocators and matrix kernels take on top of the tensors themselves."""

_FIXED = 64 << 20
"""Bytes of a pass that depend on neither model nor tokens: thread pools, kernels' scratch."""

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class BudgetError(Exception):
    """A pass does not fit into its memory; ``needed`` is the least it takes, in bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"it needs {readable(needed)}")
        self.needed = needed


@dataclass(frozen=True)
class Shape:
    """What a forward's memory follows from: widths in numbers, ``size`` in bytes per number.

    ``widest`` is the widest output of a layer's matrices for one token, ``queries`` and ``keys``
    the widths of all query heads and of all key heads; ``whole`` when attention weights are held,
    ``widened`` when matrix products are made in float32.
    """

    hidden: int
    widest: int
    heads: int
    queries: int
    keys: int
    layers: int
    vocabulary: int
    size: int
    whole: bool
    widened: bool
    device: torch.device


def shape_of(model: nn.Module) -> Shape:
    """The shape of a model, from its configuration and its weights."""
    config = heads.text_config(model)
    weight = next(model.parameters())
    hidden = _number(config, "hidden_size", weight.shape[-1])
    count = _number(config, "num_attention_heads", 1)
    width = _number(config, "head_dim", hidden // count)
    inner: Any = heads.inner_model(model)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return Shape(
        hidden,
        max(hidden, _widest(model) * _number(config, "num_experts_per_tok", 1)),
        count,
        count * width,
        _number(config, "num_key_value_heads", count) * width,
        _number(config, "num_hidden_layers", 1),
        _number(config, "vocab_size", 1),
        weight.element_size(),
        capped or getattr(getattr(inner, "config", None), "_attn_implementation", "") == "eager",
        weight.device.type == "cpu" and widened(weight.dtype),
        weight.device,
    )


def _number(config: Any, name: str, otherwise: int) -> int:
    found = getattr(config, name, None)
    return found if isinstance(found, int) and found > 0 else otherwise


def _widest(model: nn.Module) -> int:
    """The widest matrix but the embeddings and the head; stacked experts count one of them."""
    head = heads.head_of(model).module
    parts = [part for part in model.modules() if part is not head]
    return max((_width(part) for part in parts if not isinstance(part, nn.Embedding)), default=0)


def _width(part: nn.Module) -> int:
    """Of a module's own matrices: as a linear one tells it, since sharded weights are flat."""
    told = [getattr(part, name, 0) for name in ("in_features", "out_features")]
    weights = [max(w.shape[-2:]) for w in part.parameters(recurse=False) if w.dim() > 1]
    return max([size for size in (*told, *weights) if isinstance(size, int)], default=0)


def cost(shape: Shape, batch: Batch | CachedBatch, reading: Reading) -> int:
    """Bytes that one forward adds to what was there before, at its worst moment."""
    if isinstance(batch, CachedBatch):
        return _cached_cost(shape, batch, reading)
    keys = _shared_keys(batch) if isinstance(batch, SharedBatch) else _padded_keys(batch)
    return _total(shape, batch.tokens, len(batch.rows), *keys, reading)


def _cached_cost(shape: Shape, batch: CachedBatch, reading: Reading) -> int:
    """Keys and values of all layers stay, and one layer's are copied to be continued."""
    part = batch.responses or batch.prompt
    keys = part.attention_mask.size
    kept = (shape.layers + 1) * 2 * shape.keys * keys * shape.size
    rows = max(len(batch.prompt.rows), len(part.rows))
    tokens = max(batch.prompt.tokens, part.tokens)
    pairs = keys * part.input_ids.shape[1]
    return int(kept + _total(shape, tokens, rows, keys, pairs, reading))


def _shared_keys(batch: SharedBatch) -> tuple[int, int]:
    """Keys of the largest group of responses, each behind its prompt, and pairs of a query and a
    key in it."""
    keys, pairs = [0], [0]
    for block in batch.blocks:
        for group in alike(block.lengths):
            longest = block.lengths[group[0]]
            behind = len(group) * (block.prompt + longest)
            keys.append(behind)
            pairs.append(behind * longest)
        pairs.append(block.prompt**2)
    return max(keys), max(pairs)


def _padded_keys(batch: Batch) -> tuple[int, int]:
    return batch.tokens, batch.tokens * batch.attention_mask.shape[1]


def _total(shape: Shape, tokens: int, rows: int, keys: int, pairs: int, reading: Reading) -> int:
    """``keys`` are held for one layer's attention and ``pairs`` are its queries times keys."""
    # Six: an activation such as GPT-2's, written out in terms, holds as many of its inputs' size.
    # In float32: normed hidden states, and attention weights where no fused kernel takes them.
    residual = tokens * (2 * shape.hidden * shape.size + 2 * shape.hidden * 4)
    wide = 6 * tokens * shape.widest * shape.size
    wide += (4 * tokens * shape.widest + 4 * BLOCK) * shape.widened
    mask = pairs * (4 * 3 * shape.heads if shape.whole else 5)
    projected = tokens * (4 * shape.queries + 2 * shape.keys) * shape.size
    attention = projected + 2 * keys * max(shape.keys, shape.queries) * shape.size + mask
    largest = max(wide, attention, _head_cost(shape, tokens, rows, reading))
    return _FIXED + int(_SLACK * (residual + largest))


def _head_cost(shape: Shape, tokens: int, rows: int, reading: Reading) -> int:
    """Memory of tiles in float32, what is made of rows, and logits where they come whole."""
    tile = tile_size(shape.device)
    tiles = 2 * min(tile, ROWS * shape.vocabulary) * (4 + shape.size)
    taken = rows * (3 * shape.hidden * shape.size + 16 * 4)
    held = {"head": 0, "rows": rows, "logits": tokens + CHUNK}[reading]
    return tiles + taken + held * shape.vocabulary * shape.size


def truth_cost(shape: Shape, length: int, answer: int) -> int:
    """Bytes of the plainest forward, of one sequence with its response's logits at once."""
    pairs = length**2
    logits = (answer + 1) * shape.vocabulary * (shape.size + 2 * 4)
    return logits + _total(shape, length, answer, length, pairs, "head")


def decoding_rows(shape: Shape, width: int, rows: int, limit: int) -> int:
    """How many of so many ``rows`` of ``width`` tokens, prompt and output, are decoded at once to
    keep to ``limit`` bytes; one at least."""
    while rows > 1 and _decoding_cost(shape, width, rows) > limit:
        rows = -(-rows // 2)
    return rows


def _decoding_cost(shape: Shape, width: int, rows: int) -> int:
    """Keys and values of all layers, one's copied to be continued, and the prompts' forward."""
    tokens = rows * width
    kept = (shape.layers + 1) * 2 * shape.keys * tokens * shape.size
    logits = rows * shape.vocabulary * (shape.size + 4)
    return kept + logits + _total(shape, tokens, rows, tokens, tokens * width, "head")


def least(shape: Shape, sequences: Iterable[TokenSequence]) -> int:
    """Bytes that forwards of one sequence each take at most."""
    return max(truth_cost(shape, len(each), len(each.response)) for each in sequences)


def largest(
    shape: Shape,
    batches: Callable[[int], Iterable[Batch | CachedBatch]],
    reading: Reading,
    budget: int,
    limit: int,
) -> int:
    """The largest token budget, ``budget`` at most, whose forwards keep to ``limit`` bytes.

    ``batches`` gives the forwards of a budget. Raises `BudgetError` where none keeps to it.
    """
    tokens, least = budget, 0
    while tokens >= 1:
        least = max(cost(shape, batch, reading) for batch in batches(tokens))
        if least <= limit:
            return tokens
        tokens = tokens * 3 // 4
    raise BudgetError(least)


def too_little(needed: int, limit: int) -> InputError:
    """What is said where a sequence alone needs more bytes than the limit."""
    return InputError(
        f"scoring needs {readable(needed)} above the weights and {readable(limit)} are allowed",
        fix="Raise it, or shorten the probes (max_prompt_tokens, max_response_tokens)",
        field="max_memory",
    )


FREE_SHARE = 8
"""A probe takes at most one part in so many of an accelerator's free memory, unless told."""


def free_share(device: torch.device) -> int | None:
    """What a probe may take where nobody says it: part of what is free there; None on a CPU."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused) // FREE_SHARE


def parse_bytes(text: str) -> int:
    """Bytes of a text such as ``2GiB``, ``500MB`` or ``1e9``; raises `InputError`."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmg]i?|)b?\s*", text.lower())
    try:
        found = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise InputError(f"'{text}' is no amount of memory", fix="Write it like 2GiB or 500MB")
    return found


def readable(count: int) -> str:
    """A number of bytes rounded up to MiB, or to a tenth of a GiB from one on."""
    if count < 1 << 30:
        return f"{-(-count // (1 << 20))}MiB"
    return f"{-(-count * 10 // (1 << 30)) / 10:.1f}GiB"
