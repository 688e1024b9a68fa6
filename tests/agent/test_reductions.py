"""One pass over the vocabulary, against float64 and textbook formulas."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcegauge.reductions import reduce_tiles, statistics_of, token_statistics
from forcegauge.tiles import merge, tile_sums

TINY = 1e-18
"""Squares of smaller masses are 0 in float32."""


def textbook(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Every statistic in float64 from the full distribution; what is left of a mass beside a peak
    is summed without the peak, for float64 loses that difference too."""
    z = logits.double()
    top, argmax = z.max(-1)
    hit = top == z.gather(1, targets[:, None])[:, 0]  # a tie is one too
    argmax = torch.where(hit, targets, argmax)
    others = z.scatter(1, argmax[:, None], -math.inf)
    best = -torch.log1p((others.logsumexp(-1) - top).exp())
    log_pi = z - top[:, None] + best[:, None]
    pi = log_pi.exp()
    log_mass = torch.where(pi > 0, pi * log_pi, 0.0)
    beside = others.scatter(1, targets[:, None], -math.inf)
    not_target = z.scatter(1, targets[:, None], -math.inf)
    energy = (not_target.logsumexp(-1) - z.logsumexp(-1)).exp()
    return {
        "logprob": log_pi.gather(1, targets[:, None])[:, 0],
        "argmax_logprob": best,
        "argmax_mass": best.exp(),
        "log_rest": others.logsumexp(-1) - z.logsumexp(-1),
        "entropy": -log_mass.sum(-1),
        "collision": (pi**2).sum(-1),
        "energy": energy,
        "residual_norm": pi.scatter(1, targets[:, None], energy[:, None]).norm(dim=-1),
        "rank": (z > z.gather(1, targets[:, None])).double().sum(-1),
        "top_mass": pi.topk(min(5, z.shape[1])).values.sum(-1),
        "mass_target": pi.gather(1, targets[:, None])[:, 0],
        "mass_argmax": torch.where(hit, 0.0, best.exp()),
        "mass_rest": (beside.logsumexp(-1) - z.logsumexp(-1)).exp(),
        **{f"candidate_{place + 2}_logprob": best for place, best in enumerate(next_best(log_pi))},
    }


def next_best(log_pi: Tensor) -> list[Tensor]:
    """The second to the fifth largest; log 0 where the vocabulary ends before."""
    padded = torch.nn.functional.pad(log_pi, (0, 5), value=-math.inf)
    return list(padded.topk(5).values[:, 1:].unbind(1))


def assert_matches(logits: Tensor, targets: Tensor, rtol: float = 1e-4) -> None:
    found, wanted = token_statistics(logits, targets), textbook(logits, targets)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name].double(), values, rtol=rtol, atol=TINY)


def test_flat_logits_match_the_textbook() -> None:
    assert_matches(torch.randn(40, 700), torch.randint(0, 700, (40,)))


@pytest.mark.parametrize("peak", [5.0, 13.0, 20.0, 50.0, 80.0])
def test_peaked_logits_keep_small_masses_to_full_precision(peak: float) -> None:
    logits = torch.randn(40, 700)
    targets = torch.randint(0, 700, (40,))
    logits[torch.arange(40), targets] += peak
    assert_matches(logits, targets)


@pytest.mark.parametrize("peak", [13.0, 50.0, 80.0])
def test_a_peak_beside_the_target_keeps_its_small_masses(peak: float) -> None:
    logits = torch.randn(40, 700)
    logits[:, 3] += peak
    assert_matches(logits, torch.randint(4, 700, (40,)))


def test_shifted_logits_change_nothing_but_rounding_of_the_logits() -> None:
    logits = (torch.randn(40, 700) * 4 + 300).float()
    targets = torch.randint(0, 700, (40,))
    assert_matches(logits, targets)
    assert_matches(logits - 600, targets)


def test_masked_tokens_count_as_mass_zero() -> None:
    logits = torch.randn(40, 700)
    logits[:, 100:600] = -math.inf
    assert_matches(logits, torch.randint(0, 100, (40,)))


def test_a_masked_target_has_no_mass_and_full_energy() -> None:
    logits = torch.randn(4, 50)
    logits[:, 7] = -math.inf
    found = token_statistics(logits, torch.full((4,), 7))
    assert torch.equal(found["logprob"], torch.full((4,), -math.inf))
    assert torch.equal(found["energy"], torch.ones(4))
    assert not any(values.isnan().any() for values in found.values())


def test_a_single_possible_token_is_certain() -> None:
    logits = torch.full((2, 50), -math.inf)
    logits[:, 3] = 1.0
    found = token_statistics(logits, torch.tensor([3, 4]))
    assert found["logprob"].tolist() == [0.0, -math.inf]
    assert found["entropy"].tolist() == [0.0, 0.0]
    assert found["energy"].tolist() == [0.0, 1.0]
    assert found["mass_argmax"].tolist() == [0.0, 1.0]
    assert not any(values.isnan().any() for values in found.values())


def test_the_mass_outside_the_argmax_survives_underflow() -> None:
    logits = torch.tensor([[400.0, 0.0, -1.0]])
    assert token_statistics(logits, torch.tensor([0]))["log_rest"].item() == -400.0


def test_two_equal_largest_logits_share_the_mass() -> None:
    found = token_statistics(torch.tensor([[2.0, 2.0, -50.0]]), torch.tensor([1]))
    torch.testing.assert_close(found["argmax_mass"], torch.tensor([0.5]))
    torch.testing.assert_close(found["entropy"], torch.tensor([math.log(2)]))
    assert found["rank"].item() == 0


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(4, 50)
    before = logits.clone()
    token_statistics(logits, torch.zeros(4, dtype=torch.long))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("width", [1, 4, 33, 90])
def test_tiles_of_the_vocabulary_change_nothing(width: int) -> None:
    logits, targets = torch.randn(23, 90) * 9, torch.randint(0, 90, (23,))
    logits[:, 40:60] = -math.inf
    targets[(targets >= 40) & (targets < 60)] = 7
    z_y = logits.gather(1, targets[:, None])[:, 0]
    parts = [
        tile_sums(logits[:, start : start + width].clone(), targets, z_y, start)
        for start in range(0, 90, width)
    ]
    found, wanted = statistics_of(reduce(merge, parts)), textbook(logits, targets)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=TINY)


def test_the_rank_forgives_a_target_logit_that_is_rounded() -> None:
    logits, targets = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])
    for near in (2.0 - 1e-6, 2.0 + 1e-6):
        sums = tile_sums(logits.clone(), targets, torch.tensor([near]))
        assert statistics_of(sums)["rank"].tolist() == [1.0]


def test_many_rows_are_reduced_in_parts() -> None:
    logits, targets = torch.randn(2500, 300), torch.randint(0, 300, (2500,))
    z_y = logits.gather(1, targets[:, None])[:, 0]
    found = reduce_tiles(lambda rows, tokens: logits[rows, tokens].clone(), z_y, targets, 300)
    for name, values in textbook(logits, targets).items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=TINY)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(2, 400),
    scale=st.sampled_from([0.01, 1.0, 8.0, 30.0]),
    offset=st.sampled_from([-300.0, 0.0, 300.0]),
)
def test_any_logits_match_the_textbook(
    seed: int, vocabulary: int, scale: float, offset: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, vocabulary, generator=random) * scale + offset
    targets = torch.randint(0, vocabulary, (9,), generator=random)
    found, wanted = token_statistics(logits, targets), textbook(logits, targets)
    for name, values in wanted.items():
        if name == "log_rest":
            continue  # beyond 100 nats it is a bound, tested above
        torch.testing.assert_close(found[name].double(), values, rtol=2e-4, atol=TINY)
