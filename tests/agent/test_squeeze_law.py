"""The squeeze law against a softmax whose logits really take the step."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcegauge.forces import squeeze_law, squeeze_winners

SIZES = st.integers(3, 40)
SEEDS = st.integers(0, 2**31 - 1)
SPREADS = st.floats(0.1, 8.0)
STEPS = st.floats(1e-3, 5.0)
CASES = settings(max_examples=60, deadline=None)


def distribution(size: int, seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(size, dtype=torch.float64, generator=generator)


def stepped(logits: Tensor, label: int, weight: float) -> Tensor:
    """Change of every log-prob after one real gradient step on -weight * log pi(label)."""
    free = logits.clone().requires_grad_()
    (-weight * free.log_softmax(-1)[label]).backward()
    assert free.grad is not None
    return (logits - free.grad).log_softmax(-1) - logits.log_softmax(-1)


def predicted(logits: Tensor, label: int, weight: float) -> Tensor:
    pushed = torch.tensor(label), torch.tensor(weight, dtype=torch.float64)
    return squeeze_law(logits.softmax(-1), *pushed)


@CASES
@given(SIZES, SEEDS, SPREADS, st.floats(-1.0, 1.0))
def test_the_law_is_the_first_order_change_of_every_log_prob(
    size: int, seed: int, spread: float, weight: float
) -> None:
    logits = distribution(size, seed, spread)
    label, tiny = seed % size, 1e-5
    change = stepped(logits, label, weight * tiny) / tiny
    torch.testing.assert_close(change, predicted(logits, label, weight), atol=1e-4, rtol=0)


@CASES
@given(SIZES, SEEDS, SPREADS)
def test_a_small_push_down_lifts_exactly_the_tokens_above_the_threshold(
    size: int, seed: int, spread: float
) -> None:
    logits = distribution(size, seed, spread)
    label = seed % size
    law = predicted(logits, label, -1.0)
    sure = law.abs() > 1e-5
    gained = stepped(logits, label, -1e-6) > 0
    winners = squeeze_winners(logits.softmax(-1), torch.tensor(label))
    assert gained[sure].equal(winners[sure])


@CASES
@given(SIZES, SEEDS, SPREADS, STEPS)
def test_whom_the_law_lets_lose_loses_at_every_step_size(
    size: int, seed: int, spread: float, step: float
) -> None:
    logits = distribution(size, seed, spread)
    label = seed % size
    losers = ~squeeze_winners(logits.softmax(-1), torch.tensor(label))
    assert (stepped(logits, label, -step)[losers] <= 1e-12).all()


@CASES
@given(SIZES, SEEDS, SPREADS, STEPS)
def test_the_pushed_token_falls_and_the_argmax_gains(
    size: int, seed: int, spread: float, step: float
) -> None:
    logits = distribution(size, seed, spread)
    top = int(logits.argmax())
    label = seed % size
    assume(label != top)
    change = stepped(logits, label, -step)
    assert change[label] < 0
    assert change[top] > 0


@CASES
@given(SIZES, SEEDS, SPREADS, STEPS)
def test_the_less_likely_the_pushed_token_the_more_every_other_one_loses(
    size: int, seed: int, spread: float, step: float
) -> None:
    logits = distribution(size, seed, spread)
    likely, unlikely = (int(i) for i in logits.argsort(descending=True)[[1, -1]])
    others = torch.ones(size, dtype=torch.bool)
    others[[likely, unlikely]] = False
    worse = stepped(logits, unlikely, -step)[others]
    assert (worse <= stepped(logits, likely, -step)[others] + 1e-12).all()


@CASES
@given(SIZES, SEEDS, SPREADS, st.floats(1.0, 6.0))
def test_the_flatter_the_distribution_the_less_the_tail_loses(
    size: int, seed: int, spread: float, temperature: float
) -> None:
    logits = distribution(size, seed, spread)
    label, tiny = int(logits.argmin()), 1e-4
    tail = torch.cat([logits, torch.tensor([-200.0], dtype=torch.float64)])
    flat = torch.cat([logits / temperature, tail[-1:]])
    lost = -stepped(tail, label, -tiny)[-1] / tiny
    assert -stepped(flat, label, -tiny)[-1] / tiny <= lost + 1e-3


def test_a_uniform_distribution_is_not_squeezed() -> None:
    law = predicted(torch.zeros(8, dtype=torch.float64), 3, -1.0)
    torch.testing.assert_close(law[3], torch.tensor(-0.875, dtype=torch.float64))
    others = law[torch.arange(8) != 3]
    torch.testing.assert_close(others, torch.full((7,), 0.125, dtype=torch.float64))


def test_a_push_in_the_valley_of_a_peak_feeds_the_peak_alone() -> None:
    logits = torch.tensor([10.0, 0.0, 0.0, -2.0], dtype=torch.float64)
    winners = squeeze_winners(logits.softmax(-1), torch.tensor(3))
    assert winners.tolist() == [True, False, False, False]
