"""What a snapshot will need in memory and work, and how it is cut up, before anything starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from forcegauge.encoding import TokenSequence
from forcegauge.errors import RunError
from forcegauge_monitor.entk.products import BLOCK_ELEMENTS

ROWS = 16
"""Sequences of one batch at most: directions are read once for each batch."""
SLICE_BATCHES = 2
"""Batches of one piece of work: what a killed worker loses at most."""
PROCESS_BYTES = 700 << 20
"""A Python process with torch and transformers loaded."""
SHARE = 0.85
"""Share of the free memory that may be planned for."""
CONTROL_GROUP = Path("/sys/fs/cgroup")
GEMM_SHARE = 0.4
"""Share of a machine's GEMM speed that a snapshot reaches, for the time that a plan tells."""


@dataclass(frozen=True)
class ModelSize:
    """What memory and work of a model follow from.

    Attributes:
        weights: bytes of all weights.
        trained: trained parameters, name -> numbers.
        width: numbers that one token leaves behind for the backward pass.
        heads: attention heads of all layers.
        vocabulary: tokens.
        multiplied: weights that every token is multiplied with, the head apart.
        head: weights of the head.
    """

    weights: int
    trained: Mapping[str, int]
    width: int
    heads: int
    vocabulary: int
    multiplied: int
    head: int

    @property
    def trained_numbers(self) -> int:
        """Trained parameters in all."""
        return sum(self.trained.values())


def size_of(model: nn.Module, bytes_per_number: int) -> ModelSize:
    """The size of a model, which may be on the meta device."""
    from forcegauge.head import head_of, text_config

    config, head = text_config(model), head_of(model).module
    active = int(getattr(config, "num_experts_per_tok", 0) or 0)
    inside = [
        parameter
        for module in model.modules()
        if module is not head and not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    ]
    matrices = [parameter.shape for parameter in inside if parameter.dim() == 2]
    # fused experts: [experts, out, in], of which a token sees a few
    matrices += [p.shape[1:] for p in inside if p.dim() == 3 for _ in range(active)]
    layers = int(getattr(config, "num_hidden_layers", 1))
    vocabulary = int(getattr(config, "vocab_size", 1))
    return ModelSize(
        weights=sum(p.numel() for p in model.parameters()) * bytes_per_number,
        trained={n: p.numel() for n, p in model.named_parameters() if p.requires_grad},
        width=2 * sum(sum(shape) for shape in matrices),
        heads=layers * int(getattr(config, "num_attention_heads", 1)),
        vocabulary=vocabulary,
        multiplied=sum(shape.numel() for shape in matrices),
        head=vocabulary * int(getattr(config, "hidden_size", 1)),
    )


@dataclass(frozen=True)
class Work:
    """How much is asked: sequences of the probes by type, of the samples, and for the kernel."""

    probes: Mapping[str, int]
    tokens: float
    """Mean length of a sequence."""
    longest: int
    longest_response: int
    samples: int
    kernel_probes: int
    kernel_updated: int
    kernel_observed: int
    kernel_kinds: int
    seeds: int
    adam: bool
    validity: bool
    rows: int = ROWS


@dataclass(frozen=True)
class Plan:
    """How the work is cut: every choice gives the same numbers.

    Attributes:
        storage: number format in which directions are held, ``float32`` or ``bfloat16``.
        groups: response types whose directions are held together.
        blocks: parameters whose directions are held together.
        kernel_blocks: the same for the kernel's gradients.
        rows: sequences of one batch.
        slice_rows: sequences of one piece.
        peak_bytes: memory at the peak, the process included.
        disk_bytes: files of directions, until the snapshot is merged.
        forwards: work in forward passes of a mean sequence.
        flops: the same in floating-point operations.
    """

    storage: str
    groups: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, ...], ...]
    kernel_blocks: tuple[tuple[str, ...], ...]
    rows: int
    slice_rows: int
    peak_bytes: int
    disk_bytes: int
    forwards: float
    flops: float


def make_plan(model: ModelSize, work: Work, free_bytes: int) -> Plan:
    """The plan with the fewest passes that fits into the free memory.

    Float32 directions are preferred, then bfloat16, then groups of types, then blocks of
    parameters; smaller batches where they save passes. Raises `RunError` when not even one
    direction of one parameter fits.
    """
    sizes = [ROWS >> power for power in range(ROWS.bit_length())]
    plans = [_plan(model, replace(work, rows=rows), free_bytes) for rows in sizes]
    fitting = [plan for plan in plans if plan.peak_bytes <= free_bytes * SHARE]
    if not fitting:
        peak = min(plan.peak_bytes for plan in plans)
        raise RunError(
            f"A snapshot of this model needs {peak / 2**30:.1f} GiB and "
            f"{free_bytes * SHARE / 2**30:.1f} GiB may be used: use a machine with more memory."
        )
    # reading the directions for a batch takes about as long as passing one more sequence
    return min(fitting, key=lambda plan: plan.forwards * (1 + 1 / plan.rows))


def _plan(model: ModelSize, work: Work, free_bytes: int) -> Plan:
    """The plan with the fewest passes for one size of batch, or the leanest if none fits."""
    types = tuple(work.probes)
    for storage, per_group, blocks in _choices(len(types)):
        parts = _parameter_blocks(model.trained, blocks)
        kernel = _kernel_blocks(model, work, storage, free_bytes)
        peak = max(
            _attribution_peak(model, work, storage, per_group, parts),
            _kernel_peak(model, work, storage, kernel),
            _validity_peak(model, work),
        )
        if peak <= free_bytes * SHARE or len(parts) == len(model.trained):
            break
    groups = _cut(types, math.ceil(len(types) / per_group))
    forwards = _forwards(model, work, len(groups), len(parts), len(kernel))
    flops = forwards * 2 * (model.multiplied + model.head / 2) * work.tokens
    disk = len(types) * model.trained_numbers * _bytes(storage)
    size = SLICE_BATCHES * work.rows
    return Plan(storage, groups, parts, kernel, work.rows, size, peak, disk, forwards, flops)


def _choices(types: int) -> list[tuple[str, int, int]]:
    """Storage, types at a time, blocks of parameters, from the fewest passes to the most."""
    found = [("float32", types, 1), ("bfloat16", types, 1)]
    found += [("bfloat16", math.ceil(types / parts), 1) for parts in range(2, types + 1)]
    return found + [("bfloat16", 1, 2**power) for power in range(1, 17)]


def _cut(items: Sequence[str], parts: int) -> tuple[tuple[str, ...], ...]:
    edges = [round(place * len(items) / parts) for place in range(parts + 1)]
    pieces = (tuple(items[a:b]) for a, b in pairwise(edges))
    return tuple(piece for piece in pieces if piece)


def _parameter_blocks(trained: Mapping[str, int], parts: int) -> tuple[tuple[str, ...], ...]:
    """Parameters in their order, cut into at most that many blocks of about equal size."""
    share, done = sum(trained.values()) / parts, 0.0
    blocks: dict[int, list[str]] = {}
    for name, numbers in trained.items():
        blocks.setdefault(min(parts - 1, int((done + numbers / 2) / share)), []).append(name)
        done += numbers
    return tuple(tuple(block) for block in blocks.values())


def _largest(model: ModelSize, parts: Sequence[Sequence[str]]) -> int:
    return max(sum(model.trained[name] for name in part) for part in parts)


def _bytes(storage: str) -> int:
    return 4 if storage == "float32" else 2


def _activations(model: ModelSize, work: Work) -> int:
    """Bytes that one batch leaves behind for its backward pass, at most."""
    body = work.rows * work.longest * (model.width + model.heads * work.longest) * 4
    logits = 4 * work.rows * work.longest_response * model.vocabulary * 4
    return body + logits


def _attribution_peak(
    model: ModelSize, work: Work, storage: str, types: int, parts: Sequence[Sequence[str]]
) -> int:
    block = _largest(model, parts)
    base = PROCESS_BYTES + model.weights + _activations(model, work)
    # a direction is summed in float32, and its largest gradient stands beside it
    summing = block * 4 * 2 + max(model.trained.values()) * 4
    held = types * (2 if work.adam else 1) * block * _bytes(storage)
    scale = block * 4 if work.adam else 0
    return base + max(summing, held + scale + 3 * BLOCK_ELEMENTS * 4)


def _kernel_peak(model: ModelSize, work: Work, storage: str, parts: Sequence[Sequence[str]]) -> int:
    block = _largest(model, parts)
    held = work.kernel_updated * work.seeds * block * _bytes(storage)
    seeds = 3 * work.rows * work.longest_response * model.vocabulary * 4
    base = PROCESS_BYTES + model.weights + _activations(model, work) + seeds
    return base + held + max(block * 4, 3 * BLOCK_ELEMENTS * 4) if work.kernel_probes else 0


def _validity_peak(model: ModelSize, work: Work) -> int:
    step = model.trained_numbers * 4
    base = PROCESS_BYTES + model.weights + step
    return base + max(model.weights, _activations(model, work)) if work.validity else 0


def _kernel_blocks(
    model: ModelSize, work: Work, storage: str, free_bytes: int
) -> tuple[tuple[str, ...], ...]:
    for power in range(17):
        parts = _parameter_blocks(model.trained, 2**power)
        if _kernel_peak(model, work, storage, parts) <= free_bytes * SHARE:
            break
    return parts


def _forwards(model: ModelSize, work: Work, groups: int, blocks: int, kernel: int) -> float:
    """Forward passes: a backward of inputs is one, of weights another (design section 7.1)."""
    types, probes = len(work.probes), sum(work.probes.values())
    directions = (2 if work.adam else 1) * types
    held = work.kernel_updated * work.seeds
    total = blocks * 3.0 * probes
    total += groups * blocks * (3 + directions / groups / work.tokens) * work.samples + work.samples
    each = work.kernel_updated * (1.0 + 2 * work.seeds)
    each += work.kernel_observed * (1 + work.seeds * (2 + held / work.tokens))
    total += work.kernel_probes * work.kernel_kinds * kernel * each
    return total + (5.0 * probes if work.validity else 0.0)


def lengths(sequences: Sequence[TokenSequence]) -> tuple[float, int, int]:
    """Mean and longest length of sequences, and the longest response, in tokens."""
    sizes = [len(item) for item in sequences]
    longest = max(len(item.response) for item in sequences)
    return sum(sizes) / len(sizes), max(sizes), longest


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return min(free, _control_group_memory(CONTROL_GROUP))


def machine_flops(device: torch.device) -> float:
    """Floating-point operations a second that a snapshot gets here: a share of a measured GEMM."""
    size = 4096 if device.type == "cuda" else 1024
    one = torch.randn(size, size, device=device)
    one @ one
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.3:
        (one @ one).sum().item()
        rounds += 1
    return GEMM_SHARE * rounds * 2 * size**3 / (time.perf_counter() - started)


def _control_group_memory(folder: Path) -> int:
    limit, used = (_lines(folder / name) for name in ("memory.max", "memory.current"))
    if not limit or not used or limit[0] == "max":
        return 1 << 62
    return int(limit[0]) - int(used[0])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
