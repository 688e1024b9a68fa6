"""The tile's sums in one Triton kernel on CUDA: each logit is read once, in its own number format.

A row's logits are taken in blocks, each of which stays in registers: its `Sums` are merged into the
row's as `tiles.merge` does, so that no mass, however small, is a difference. It is used once
it has agreed with the plain reduction on the device; where Triton is missing or fails, the plain
one goes on.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forcegauge.scores import TOP_K
from forcegauge.tiles import Sums, tile_sums

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

logger = logging.getLogger(__name__)

BLOCK = 4096
"""Logits that are in registers at a time."""

_LANES = 8  # a power of 2 that holds the top k
_CHECKED = (16, 10_000)  # rows and logits of the check


def sums_of(
    z: Tensor, targets: Tensor, near: Tensor, first: int = 0, memory: Tensor | None = None
) -> Sums:
    """`tiles.tile_sums` of logits [rows, part] of any float type by the fastest right way. With
    float32 scratch ``memory`` [2, at least as many numbers] the logits may be used up."""
    if z.is_cuda and _agrees(z.device.index or 0, z.dtype):
        return kernel_sums(z, targets, near, first)
    if memory is None:
        return tile_sums(z.to(torch.float32, copy=True), targets, near, first)
    into, spare = (part[: z.numel()].view(z.shape) for part in memory)
    plain = z if z.dtype == torch.float32 else into.copy_(z)
    return tile_sums(plain, targets, near, first, spare)


@cache
def _agrees(device: int, dtype: torch.dtype) -> bool:
    """Whether the kernel runs on a device and finds what the plain reduction does."""
    if triton is None:
        return False
    random = torch.Generator(f"cuda:{device}").manual_seed(0)
    z = torch.randn(_CHECKED, generator=random, device=f"cuda:{device}").mul_(8).to(dtype)
    return agrees_on(z)


def agrees_on(z: Tensor) -> bool:
    """Whether kernel and plain reduction agree on these logits; says why not."""
    targets = torch.arange(len(z), device=z.device) * 7
    near = z.gather(1, targets[:, None])[:, 0].float()
    wanted = tile_sums(z.float().clone(), targets, near)
    try:
        found = kernel_sums(z, targets, near, 0)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and we go on without
        logger.info("logits are reduced without a kernel: %s", error)
        return False
    right = all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, wanted, strict=True))
    if not right:
        logger.warning("the kernel's sums are not those of the plain reduction: it is not used")
    return right


def kernel_sums(z: Tensor, targets: Tensor, near: Tensor, first: int) -> Sums:
    """The sums of logits z [rows, part], whose tokens begin at ``first``, by the kernel."""
    rows, width = z.shape
    made = torch.empty(5, rows, dtype=torch.float32, device=z.device)
    top = torch.empty(rows, TOP_K, dtype=torch.float32, device=z.device)
    places = targets - first
    _row_sums[(rows,)](z, z.stride(0), places, near, made, top, rows, width, BLOCK, TOP_K, _LANES)
    rest, squares, moment, above, target = made
    ordered = top.topk(min(TOP_K, width), dim=1).values
    return Sums(ordered, rest, squares, moment, above, target)


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _peak_sums(z: Any, places: Any) -> Any:
    """Of logits in registers: the largest, and over all but the first that is as large the sums
    of e, e^2 and e (m - z)."""
    peak = tl.max(z)
    depth = tl.maximum(z - tl.maximum(peak, -3.4028234663852886e38), -200.0)
    e = tl.where(places == tl.argmax(z, axis=0), 0.0, tl.exp(depth))
    return peak, tl.sum(e), tl.sum(e * e), -tl.sum(e * depth)


@_jit
def _merged(top_a: Any, rest_a: Any, squares_a: Any, moment_a: Any, count_a: Any,
            top_b: Any, rest_b: Any, squares_b: Any, moment_b: Any) -> Any:  # fmt: skip
    """`tiles.merge`; ``count_a`` is 0 while there is no part a, and 1 afterwards."""
    high = tl.maximum(tl.maximum(top_a, top_b), -3.4028234663852886e38)
    fall_a, fall_b = tl.maximum(top_a - high, -200.0), tl.maximum(top_b - high, -200.0)
    weight_a, weight_b = tl.exp(fall_a), tl.exp(fall_b)
    all_a, all_b = count_a + rest_a, 1.0 + rest_b
    ahead = top_a >= top_b
    rest = tl.where(ahead, rest_a + weight_b * all_b, rest_b + weight_a * all_a)
    squares = tl.where(
        ahead,
        squares_a + weight_b * weight_b * (1.0 + squares_b),
        squares_b + weight_a * weight_a * (count_a + squares_a),
    )
    moment = weight_a * (moment_a - fall_a * all_a) + weight_b * (moment_b - fall_b * all_b)
    return tl.maximum(top_a, top_b), rest, squares, moment


@_jit
def _largest(z: Any, places: Any, best: Any, lanes: Any, K: tl.constexpr) -> Any:  # noqa: N803
    """``best`` with the k largest of these logits taken in, in any order."""
    for _ in tl.static_range(K):
        candidate = tl.max(z)
        z = tl.where(places == tl.argmax(z, axis=0), -float("inf"), z)
        smallest = lanes == tl.argmin(best, axis=0)
        best = tl.where(smallest, tl.maximum(best, candidate), best)
    return best


@_jit
def _row_sums(
    z_rows: Any, stride: Any, targets: Any, near: Any, made: Any, top: Any,
    rows: Any, width: Any, BLOCK: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    """One row: ``made`` [5, rows] gets rest, squares, moment, above and target, ``top`` [rows, k]
    the largest logits in any order. The target is left out of all but ``target``."""
    row = tl.program_id(0)
    start = z_rows + row.to(tl.int64) * stride
    aim, mark = tl.load(targets + row), tl.load(near + row)
    places, lanes = tl.arange(0, BLOCK), tl.arange(0, LANES)
    best = tl.where(lanes < K, -float("inf"), float("inf"))
    zero = tl.full((), 0.0, tl.float32)
    rest, squares, moment, above, count = zero, zero, zero, zero, zero
    largest, target = zero - float("inf"), zero - float("inf")
    for begin in range(0, width, BLOCK):
        inside = begin + places < width
        z = tl.load(start + begin + places, mask=inside, other=-float("inf")).to(tl.float32)
        hit = begin + places == aim
        target = tl.maximum(target, tl.max(tl.where(hit, z, -float("inf"))))
        z = tl.where(hit, -float("inf"), z)
        above += tl.sum((z > mark).to(tl.float32))
        peak, rest_b, squares_b, moment_b = _peak_sums(z, places)
        largest, rest, squares, moment = _merged(
            largest, rest, squares, moment, count, peak, rest_b, squares_b, moment_b
        )
        count = zero + 1.0
        best = _largest(z, places, best, lanes, K)
    tl.store(made + row, rest)
    tl.store(made + rows + row, squares)
    tl.store(made + 2 * rows + row, moment)
    tl.store(made + 3 * rows + row, above)
    tl.store(made + 4 * rows + row, target)
    tl.store(top + row * K + lanes, best, mask=lanes < K)
