"""Products of a scoring pass on a CPU: as exact as float32 allows, and nobody else's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcegauge.products import OneDnnProducts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product that oneDNN makes."""
    seen: list[int] = []
    real = torch.ops.mkldnn._linear_pointwise

    def counted(x: Tensor, *rest: object) -> Tensor:
        seen.append(x.shape[0])
        result: Tensor = real(x, *rest)
        return result

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return seen


@torch.no_grad()
def test_a_product_is_as_exact_as_float32_allows(calls: list[int]) -> None:
    x, layer = torch.randn(33, 64), nn.Linear(64, 100)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with OneDnnProducts():
        found = layer(x)
    assert calls == [33]
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_product_has_the_same_bits_every_time(calls: list[int]) -> None:
    x, weight = torch.randn(3, 7, 16), torch.randn(40, 16)
    with OneDnnProducts():
        assert torch.equal(F.linear(x, weight), F.linear(x, weight))
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_pytorch(calls: list[int], dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    with OneDnnProducts():
        found = F.linear(x, weight)
    assert not calls
    assert torch.equal(found, F.linear(x, weight))


@torch.no_grad()
def test_autocast_is_left_to_pytorch(calls: list[int]) -> None:
    with torch.autocast("cpu", torch.bfloat16), OneDnnProducts():
        assert F.linear(torch.randn(5, 8), torch.randn(4, 8)).dtype == torch.bfloat16
    assert not calls


def test_what_needs_gradients_is_left_to_pytorch(calls: list[int]) -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    with OneDnnProducts():
        F.linear(torch.randn(5, 8), weight).sum().backward()
    assert weight.grad is not None
    assert not calls
