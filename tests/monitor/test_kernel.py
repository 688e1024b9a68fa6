"""Kernel norms against a kernel that is formed explicitly on a tiny vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forcegauge.encoding import TokenSequence
from forcegauge_monitor.entk.kernel import (
    Role,
    bilinear,
    head_squared_norm,
    pooled_norm,
    seed_of,
    squared_norms,
)
from tests.monitor import tinies

VOCABULARY = 12


def small(kind: str = "llama", **changes: Any) -> nn.Module:
    return tinies.model(
        kind, vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        **changes,
    )  # fmt: skip


ROLES: tuple[Role, Role] = ("observed", "updated")
ONE = TokenSequence(0, 0, (3, 4), (5, 6, 7))
OTHER = TokenSequence(0, 1, (3, 4), (8, 2))


def jacobian(net: nn.Module, item: TokenSequence) -> Tensor:
    """All logits that predict the response with respect to all weights, [tokens * V, weights]."""
    ids = torch.tensor([[*item.prompt, *item.response]])
    places = torch.arange(len(item.response)) + len(item.prompt) - 1

    logits = net(input_ids=ids).logits[0, places].flatten()
    weights = list(net.parameters())
    rows = [torch.autograd.grad(value, weights, retain_graph=True) for value in logits]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def centred(matrix: Tensor) -> Tensor:
    """Pi applied to the left of a matrix whose rows are tokens times V."""
    split = matrix.view(-1, VOCABULARY, matrix.shape[-1])
    return (split - split.mean(1, keepdim=True)).reshape(matrix.shape)


def explicit(net: nn.Module) -> Tensor:
    """Pi K Pi of the two responses."""
    return (centred(jacobian(net, ONE)) @ centred(jacobian(net, OTHER)).T).double()


def estimate(net: nn.Module, label: str, **settings: Any) -> Tensor:
    names = [name for name, _ in net.named_parameters()]
    parts = bilinear(net, names, [(label, ONE)], [(label, OTHER)], **settings)
    return torch.stack(list(parts.values())).sum(0)[0, 0]


@pytest.mark.parametrize("tied", [False, True])
def test_bilinear_values_estimate_the_centred_kernel(tied: bool) -> None:
    net = small(tie_word_embeddings=tied)
    truth = float(explicit(net).square().sum())
    mean, variance = squared_norms(estimate(net, "a", seeds=40))
    assert abs(float(mean) - truth) < 3 * float(variance) ** 0.5
    assert float(variance) ** 0.5 < 0.25 * truth


def test_fisher_seeds_estimate_the_fisher_weighted_kernel() -> None:
    net = small()
    kernel = (jacobian(net, ONE) @ jacobian(net, OTHER).T).double()

    def fisher(item: TokenSequence) -> Tensor:
        with torch.no_grad():
            ids = torch.tensor([[*item.prompt, *item.response]])
            logits = net(input_ids=ids).logits[0, len(item.prompt) - 1 : -1].double()
        blocks = [torch.diag(p) - torch.outer(p, p) for p in logits.softmax(-1)]
        return torch.block_diag(*blocks)  # type: ignore[no-any-return]

    truth = float((fisher(ONE) @ kernel @ fisher(OTHER) @ kernel.T).trace())
    mean, variance = squared_norms(estimate(net, "a", seeds=60, kind="fisher"))
    assert abs(float(mean) - truth) < 3 * float(variance) ** 0.5
    assert float(variance) ** 0.5 < 0.4 * truth


def random_values(kernel: Tensor, runs: int, seeds: int, draw: torch.Generator) -> Tensor:
    """Bilinear values [runs, seeds, seeds] of an explicit centred kernel."""
    left = torch.randn(runs, seeds, kernel.shape[0], generator=draw, dtype=torch.float64)
    right = torch.randn(runs, seeds, kernel.shape[1], generator=draw, dtype=torch.float64)
    return torch.einsum("ria,ab,rjb->rij", left, kernel, right)


def test_standard_errors_cover_the_truth_as_often_as_they_should() -> None:
    kernel = explicit(small())
    truth = float(kernel.square().sum().sqrt())
    draw = torch.Generator().manual_seed(0)
    # 300 snapshots of 24 probes with the same kernel and 4 seeds on each side
    values = random_values(kernel, 300 * 24, 4, draw).view(300, 24, 4, 4).transpose(0, 1)
    norm, error = pooled_norm(values, torch.ones(24, 300))
    inside = ((norm - truth).abs() < 2 * error).double().mean()
    assert 0.90 < float(inside) < 0.99
    assert float(error.mean()) == pytest.approx(float(norm.std()), rel=0.15)
    assert float(norm.square().mean()) == pytest.approx(truth**2, rel=0.03)


def test_squares_of_projected_gradients_are_biased_and_products_of_two_are_not() -> None:
    draw = torch.Generator().manual_seed(0)
    weights, width, runs = 400, 20, 2000
    one, other = torch.randn(2, weights, generator=draw, dtype=torch.float64)
    other = other + 0.05 * one
    truth = float(one @ other) ** 2
    projections = torch.randn(runs, 2, width, weights, generator=draw).double() / width**0.5
    dots = ((projections @ one) * (projections @ other)).sum(-1)
    naive, twice = dots[:, 0].square(), dots.prod(-1)
    excess = float(one @ one) * float(other @ other) / width
    spread = float(naive.std()) / runs**0.5
    assert abs(float(naive.mean()) - truth) > 5 * spread
    assert float(naive.mean()) - truth == pytest.approx(excess, rel=0.2)
    assert abs(float(twice.mean()) - truth) < 3 * float(twice.std()) / runs**0.5


def test_one_seed_for_both_roles_would_be_biased() -> None:
    kernel = explicit(small())
    square = kernel @ kernel.T
    draw = torch.Generator().manual_seed(0)
    seeds = torch.randn(20000, len(square), generator=draw, dtype=torch.float64)
    same = torch.einsum("ra,ab,rb->r", seeds, square, seeds).square().mean()
    assert float(same) > 1.5 * float(square.square().sum())
    observed, updated = (seed_of("gaussian", role, "p", 0) for role in ROLES)
    assert observed != updated


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_untied_heads_part_has_its_closed_form(kind: str) -> None:
    net = small(kind, tie_word_embeddings=False)
    names = [name for name, _ in net.named_parameters()]
    parts = bilinear(net, names, [("a", ONE)], [("a", OTHER)], seeds=60)
    mean, variance = squared_norms(parts["lm_head.weight"][0, 0])
    exact = head_squared_norm(net, ONE, OTHER)
    assert abs(float(mean) - exact) < 3 * float(variance) ** 0.5
    assert float(variance) ** 0.5 < 0.2 * exact


def test_seeds_are_the_same_at_every_checkpoint() -> None:
    first, second = small(seed=0), small(seed=0)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1e-6 * torch.randn_like(parameter))
    one, other = estimate(first, "a"), estimate(second, "a")
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    assert not torch.allclose(one, estimate(first, "b"), rtol=0.1)


def test_probes_that_lack_a_response_are_left_out() -> None:
    values = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    values[1] = torch.nan
    norm, error = pooled_norm(values, torch.ones(3, 1))
    kept, other = pooled_norm(values[[0, 2]], torch.ones(2, 1))
    assert torch.equal(norm, kept)
    assert torch.equal(error, other)
