"""Products of a scoring pass on a CPU: as exact as their type allows, and nobody else's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcegauge import products
from forcegauge.products import FastProducts
from tests import tiny


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
    with FastProducts():
        found = layer(x)
    assert calls == [33]
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_product_has_the_same_bits_every_time(calls: list[int]) -> None:
    x, weight = torch.randn(3, 7, 16), torch.randn(40, 16)
    with FastProducts():
        assert torch.equal(F.linear(x, weight), F.linear(x, weight))
    assert len(calls) == 2


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64)])
@pytest.mark.usefixtures("no_bfloat16")
def test_a_cpu_without_bfloat16_makes_its_products_in_float32(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(products, "BLOCK", 64 * 7)
    x = torch.randn(shape).bfloat16()
    weight, bias = torch.randn(40, 64).bfloat16(), torch.randn(40).bfloat16()
    with FastProducts(narrow_only=True):
        found = F.linear(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert len(calls) == 6
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("no_bfloat16")
def test_a_model_in_bfloat16_is_the_same_with_and_without_such_products(calls: list[int]) -> None:
    model = tiny.llama().bfloat16()
    scores = [model(torch.arange(6)[None]).logits.float()]
    with FastProducts():
        scores.append(model(torch.arange(6)[None]).logits.float())
    assert calls
    torch.testing.assert_close(*scores, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_float32_can_be_left_to_pytorch(calls: list[int]) -> None:
    with FastProducts(narrow_only=True):
        F.linear(torch.randn(5, 8), torch.randn(4, 8))
    assert not calls


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_pytorch(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    x, weight = torch.randn(5, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    with FastProducts():
        found = F.linear(x, weight)
    assert not calls
    assert torch.equal(found, F.linear(x, weight))


@torch.no_grad()
def test_autocast_is_left_to_pytorch(calls: list[int]) -> None:
    with torch.autocast("cpu", torch.bfloat16), FastProducts():
        assert F.linear(torch.randn(5, 8), torch.randn(4, 8)).dtype == torch.bfloat16
    assert not calls


def test_what_needs_gradients_is_left_to_pytorch(calls: list[int]) -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    with FastProducts():
        F.linear(torch.randn(5, 8), weight).sum().backward()
    assert weight.grad is not None
    assert not calls
