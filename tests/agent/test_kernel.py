"""The CUDA kernel of the vocabulary's sums, run by Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forcegauge import kernel
from forcegauge.reductions import statistics_of
from forcegauge.tiles import Sums, merge, tile_sums

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")


def rows_of(width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are flat, ordinary, peaked, shifted, with ties and with -inf; targets; theirs."""
    random = torch.Generator().manual_seed(width)
    z = torch.randn(8, width, generator=random) * torch.tensor([0.0, 1, 3, 30, 3, 3, 3, 3])[:, None]
    z[4] += 300
    z[5, ::2] = -torch.inf
    z[6, 1] = z[6, width - 1] = 20.0
    targets = torch.tensor([3, 0, width - 1, 5, 5, 7, 1, int(z[7].argmax())])
    z = z.to(dtype)
    return z, targets, z.gather(1, targets[:, None])[:, 0].float()


def close(found: Sums, wanted: Sums) -> None:
    for name in Sums._fields:
        a, b = getattr(found, name), getattr(wanted, name)
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-30), name


@pytest.mark.parametrize("width", [9, 640, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_finds_the_sums_of_the_plain_reduction(width: int, dtype: torch.dtype) -> None:
    z, targets, near = rows_of(width, dtype)
    close(kernel.kernel_sums(z, targets, near, 0), tile_sums(z.float().clone(), targets, near))


def test_statistics_by_the_kernel_are_those_in_float64() -> None:
    z, targets, near = rows_of(5000)
    found = statistics_of(kernel.kernel_sums(z, targets, near, 0))
    exact = z.double().log_softmax(1)
    logprob = exact.gather(1, targets[:, None])[:, 0]
    entropy = -(exact.exp() * exact.clamp_min(-1e9)).sum(1)
    torch.testing.assert_close(found["logprob"].double(), logprob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["entropy"].double(), entropy, rtol=1e-5, atol=1e-6)
    collision = exact.exp().square().sum(1)
    torch.testing.assert_close(found["collision"].double(), collision, rtol=1e-5, atol=1e-12)


def test_parts_of_the_vocabulary_merge() -> None:
    z, targets, near = rows_of(5000)
    left = kernel.kernel_sums(z[:, :1000], targets, near, 0)
    right = kernel.kernel_sums(z[:, 1000:], targets, near, 1000)
    close(merge(left, right), tile_sums(z.clone(), targets, near))


def test_a_kernel_that_agrees_is_used_and_one_that_fails_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    z = torch.randn(16, 1000)
    assert kernel.agrees_on(z)
    right = kernel.kernel_sums
    monkeypatch.setattr(kernel, "kernel_sums", lambda *a: right(*a)._replace(rest=torch.ones(16)))
    assert not kernel.agrees_on(z)
    assert "not used" in caplog.text
    monkeypatch.delattr(kernel, "_row_sums")
    monkeypatch.setattr(kernel, "kernel_sums", right)
    assert not kernel.agrees_on(z)


def test_a_cpu_takes_the_plain_reduction() -> None:
    z, targets, near = rows_of(640, torch.bfloat16)
    close(kernel.sums_of(z, targets, near), tile_sums(z.float(), targets, near))
