"""Matrix products of a scoring pass on a CPU: in float32, and by oneDNN.

PyTorch hands float32 products to MKL, which was measured at half of oneDNN's rate on an AMD CPU
with AVX-512 and at the same one on an AMD CPU with AVX2 (see scoring.md). Where a CPU has no
products in bfloat16 or float16, PyTorch's own were measured at an eighth of the rate in float32:
such products are made in float32 and rounded once. The training's own stay as they are.

Whether float32 products are right is checked with the way of scoring (`forcegauge.ways.choose`),
against the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forcegauge.reductions import slices

_PLAIN = (Tensor, nn.Parameter)

BLOCK = 1 << 22
"""Weights that are held in float32 at a time."""

_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


class FastProducts(TorchFunctionMode):
    """While it lasts, `F.linear` of plain tensors on a CPU is made as above; no gradients.

    ``narrow_only`` leaves float32 to PyTorch.
    """

    def __init__(self, *, narrow_only: bool = False) -> None:
        super().__init__()
        self.narrow_only = narrow_only

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _plain(*args):
            x, weight, bias = (*args, None)[:3]
            if widened(x.dtype):
                return _widened(x, weight, bias)
            if x.dtype == torch.float32 and not self.narrow_only:
                return _float32(x, weight, bias)
        return func(*args, **(kwargs or {}))


def widened(dtype: torch.dtype) -> bool:
    """Whether products of this type are made in float32, because the CPU has none of its own."""
    support = getattr(torch.ops.mkldnn, _SUPPORT.get(dtype, ""), None)
    return support is not None and not support()


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    parts = [part for part in (x, weight, bias) if part is not None]
    simple = all(
        type(part) in _PLAIN and part.dtype == x.dtype and part.device.type == "cpu"
        for part in parts
    )
    other = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return simple and not other and weight.is_contiguous() and x.numel() > 0


def _float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    found: Tensor = linear(x, weight, bias, "none", [], "")
    return found


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = x.float()
    made = x.new_empty(*x.shape[:-1], len(weight))
    for part in slices(len(weight), max(1, BLOCK // weight.shape[1])):
        some = None if bias is None else bias[part].float()
        made[..., part] = _float32(wide, weight[part].float(), some)
    return made
