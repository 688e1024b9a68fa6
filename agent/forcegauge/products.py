"""Float32 matrix products of a scoring pass on a CPU, by oneDNN.

PyTorch hands them to MKL, which was measured at half of oneDNN's rate on an AMD CPU with AVX-512
(see scoring.md); the training's own products stay as they are. Whether the numbers are right is
checked with the way of scoring (`forcegauge.ways.choose`), against the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PLAIN = (Tensor, nn.Parameter)


class OneDnnProducts(TorchFunctionMode):
    """While it lasts, `F.linear` of plain float32 tensors on a CPU is oneDNN's; no gradients."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _plain(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    parts = [part for part in (x, weight, bias) if part is not None]
    simple = all(
        type(part) in _PLAIN and part.dtype == torch.float32 and part.device.type == "cpu"
        for part in parts
    )
    other = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return simple and not other and weight.is_contiguous() and x.numel() > 0 and _available()


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
