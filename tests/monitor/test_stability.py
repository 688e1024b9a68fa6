"""Kernels of two checkpoints are told apart by signed values, not by norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forcegauge_monitor.entk.stability import alignment, rank_stability, velocity
from forcegauge_monitor.entk.validity import agreement, predicted_changes
from tests.monitor import tinies


def values(kernel: Tensor, pairs: int = 60, seeds: int = 4) -> Tensor:
    """Bilinear values of one kernel for many pairs, always with the same seeds."""
    draw = torch.Generator().manual_seed(5)
    left = torch.randn(pairs, seeds, len(kernel), generator=draw)
    right = torch.randn(pairs, seeds, len(kernel), generator=draw)
    return torch.einsum("pia,ab,pjb->pij", left, kernel, right)


DRAW = torch.Generator().manual_seed(6)
ONE, OTHER = torch.randn(2, 30, 30, generator=DRAW)


def test_alignment_is_one_for_the_same_kernel_and_near_zero_for_another() -> None:
    assert alignment(values(3 * ONE), values(ONE)) == pytest.approx(1)
    assert abs(alignment(values(OTHER), values(ONE))) < 0.1


def test_alignment_and_velocity_are_those_of_the_kernels() -> None:
    moved = ONE + 0.5 * OTHER
    exact = float((moved * ONE).sum() / (moved.norm() * ONE.norm()))
    assert alignment(values(moved), values(ONE)) == pytest.approx(exact, abs=0.05)
    speed = float((moved - ONE).norm() / ONE.norm())
    assert velocity(values(moved), values(ONE)) == pytest.approx(speed, rel=0.1)


def test_absent_pairs_are_left_out() -> None:
    now, before = values(ONE + OTHER), values(ONE)
    holed = now.clone()
    holed[3] = torch.nan
    kept = torch.arange(60) != 3
    assert alignment(holed, before) == pytest.approx(alignment(now[kept], before[kept]))


def test_other_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="different pairs or seeds"):
        alignment(values(ONE), values(ONE, seeds=2))


def test_rank_stability_is_spearmans() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, 4.0, torch.nan])
    assert rank_stability(torch.tensor([10.0, 20.0, 30.0, 40.0, 5.0]), before) == 1
    assert rank_stability(torch.tensor([10.0, 20.0, 40.0, 30.0, 5.0]), before) == pytest.approx(0.8)
    assert rank_stability(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) is None


def test_predictions_agree_with_themselves() -> None:
    x = torch.tensor([0.1, -0.2, 0.4, torch.nan])
    found = agreement(x, x)
    assert found is not None
    assert (found.slope, found.r2, found.residual, found.n) == (1, 1, 0, 3)
    double = agreement(x, 2 * x)
    assert double is not None
    assert double.slope == pytest.approx(2)
    assert double.r2 < 1
    assert agreement(x, torch.zeros(4)) is None


def test_predicted_changes_meet_measured_ones_as_the_step_shrinks() -> None:
    items = tinies.sequences(6, seed=4)
    ratios = []
    for size in (1e-2, 1e-3):
        net = tinies.model("qwen2")
        step = {name: size * torch.randn_like(p) for name, p in net.named_parameters()}
        predicted = predicted_changes(net, items, step)
        with torch.no_grad():
            before = torch.stack([tinies.logprobs(net, item).mean() for item in items])
            for name, parameter in net.named_parameters():
                parameter.add_(step[name])
            after = torch.stack([tinies.logprobs(net, item).mean() for item in items])
        error = (after - before).double() - predicted
        ratios.append(float(error.norm() / predicted.norm()))
    assert ratios[1] < 0.02
    assert ratios[1] < ratios[0] / 4
