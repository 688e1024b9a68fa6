from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcegauge.forces import (
    VALLEY_MASS,
    TokenForces,
    add_sums,
    contexts,
    force_sums,
    force_values,
    from_collision,
    net_forces,
)

VOCAB = 11


def forces(
    logits: Tensor,
    context: list[int],
    label: list[int],
    weight: list[float],
    source: list[int] | None = None,
) -> TokenForces:
    """Forces on tokens whose contexts are rows of ``logits``, [contexts, vocab]."""
    probs = logits.double().softmax(-1)[torch.tensor(context)]
    at = torch.tensor(label).unsqueeze(-1)
    pi_y = probs.gather(-1, at).squeeze(-1)
    others = probs.scatter(-1, at, 0.0)
    return TokenForces(
        weight=torch.tensor(weight, dtype=torch.float64),
        logprob=pi_y.log(),
        energy=others.sum(-1),
        rest=others.square().sum(-1),
        context=torch.tensor(context),
        label=torch.tensor(label),
        source=torch.tensor(source or [-1] * len(label)),
    )


def some_logits(rows: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, VOCAB, dtype=torch.float64, generator=generator)


def dense_sums(logits: Tensor, tokens: TokenForces) -> dict[str, float]:
    """F_up, F_down and the squeeze law from whole gradient vectors, one loop over contexts."""
    found = {"up": 0.0, "down": 0.0, "drain": 0.0}
    for context in set(tokens.context.tolist()):
        pi = logits[context].softmax(-1)
        net = torch.zeros(VOCAB, dtype=torch.float64)
        for label, weight, at in zip(tokens.label, tokens.weight, tokens.context, strict=True):
            if int(at) == context:
                net[label] += weight
        for label, weight in enumerate(net.tolist()):
            size = abs(weight) * float((pi - torch.eye(VOCAB)[label]).norm())
            found["up" if weight > 0 else "down"] += size
        gradient = net.sum() * pi - net
        if (net < 0).any():
            found["drain"] += max(0.0, -float(pi @ gradient))
    return found


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, VOCAB - 1), st.floats(-2, 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(0, 1000), st.floats(0.1, 6.0))
def test_sums_are_those_of_the_whole_gradient_vectors(
    rows: list[tuple[int, int, float]], seed: int, spread: float
) -> None:
    logits = some_logits(4, seed, spread)
    context, label, weight = (list(column) for column in zip(*rows, strict=True))
    tokens = forces(logits, context, label, weight)
    sums = force_sums(tokens)
    for name, value in dense_sums(logits, tokens).items():
        assert sums[name] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_a_pairs_shared_prefix_has_no_force() -> None:
    tokens = forces(some_logits(2), [0, 0, 1, 1], [3, 3, 5, 7], [0.2, -0.2, 0.2, -0.2])
    net = net_forces(tokens)
    assert sorted(net.weight.tolist()) == [-0.2, 0.0, 0.2]
    alone = forces(some_logits(2), [1, 1], [5, 7], [0.2, -0.2])
    assert force_sums(tokens)["down"] == pytest.approx(force_sums(alone)["down"])


def test_a_token_that_both_answers_push_belongs_to_neither() -> None:
    tokens = forces(
        some_logits(2), [0, 0, 1, 1], [3, 3, 5, 7], [0.3, -0.2, 0.3, -0.2], [0, 1, 0, 1]
    )
    sums = force_sums(tokens)
    assert 0 < sums["chosen_up"] < sums["up"]
    assert sums["rejected_down"] == pytest.approx(sums["down"])
    assert sums["chosen_down"] == 0


def test_a_single_push_down_drains_its_weight_times_the_excess() -> None:
    logits = some_logits(1)
    pi = logits[0].softmax(-1)
    label = int(pi.argmin())
    sums = force_sums(forces(logits, [0], [label], [-0.5]))
    assert sums["drain"] == pytest.approx(0.5 * float(pi.square().sum() - pi[label]))


def test_a_pull_up_alone_is_no_squeeze() -> None:
    logits = some_logits(1)
    assert force_sums(forces(logits, [0], [int(logits.argmax())], [1.0]))["drain"] == 0


def test_a_push_down_on_the_argmax_is_no_squeeze() -> None:
    logits = some_logits(1)
    assert force_sums(forces(logits, [0], [int(logits.argmax())], [-1.0]))["drain"] == 0


def test_the_valley_is_the_push_on_tokens_that_are_already_unlikely() -> None:
    logits = torch.tensor([[8.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    tokens = forces(logits, [0, 1], [2, 2], [-1.0, -1.0])
    assert tokens.logprob.exp()[0] < VALLEY_MASS < tokens.logprob.exp()[1]
    values = force_values(force_sums(tokens))
    valley = float(tokens.residual_norm()[0])
    assert values["valley_force_ratio"] == pytest.approx(valley / values["force_down_norm"])


def test_peaked_positions_keep_their_digits() -> None:
    # 1 - pi_y is 4e-18 here: every textbook form gives 0 in float64
    tokens = forces(torch.tensor([[40.0, 0.0, -1.0]], dtype=torch.float64), [0], [0], [1.0])
    energy = (math.exp(-40) + math.exp(-41)) / (1 + math.exp(-40) + math.exp(-41))
    assert float(tokens.energy) == pytest.approx(energy, rel=1e-12)
    assert energy < float(tokens.residual_norm()) < math.sqrt(2) * energy


@pytest.mark.parametrize("gap", [0.0, 1.0, 4.0, 8.0])
def test_the_norm_from_float32_log_collision_is_right_where_the_difference_survives(
    gap: float,
) -> None:
    logits = some_logits(1)
    logits[0, 0] += gap
    exact = forces(logits, [0], [0], [1.0])
    log_sum_sq = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
    energy, rest = from_collision(exact.logprob.float(), log_sum_sq.float())
    norm = (energy.square() + rest).sqrt()
    torch.testing.assert_close(norm, exact.residual_norm(), rtol=2e-3, atol=0)


def test_the_norm_from_float32_log_collision_stays_in_its_bounds_at_a_peak() -> None:
    exact = forces(torch.tensor([[14.0, 0.0, 0.0]], dtype=torch.float64), [0], [0], [1.0])
    energy, rest = from_collision(exact.logprob.float(), 2 * exact.logprob.float())
    assert 0 <= float(rest) <= float(energy) ** 2


def test_contexts_are_the_same_up_to_the_first_different_token() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 8], [4, 6, 7, 8]])
    found = contexts(ids)
    same = found.unsqueeze(0) == found.unsqueeze(1)
    assert same[0, 1].tolist() == [True, True, False, False]
    assert not same[2, :2].any()
    assert len(found.unique()) == 10


def test_contexts_of_packed_sequences_begin_where_positions_restart() -> None:
    ids = torch.tensor([[5, 6, 7, 5, 6, 8, 9]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    found = contexts(ids, positions)[0].tolist()
    assert found[:2] == found[3:5]
    assert len(set(found)) == 5


def test_steps_add_up_and_are_scaled_by_the_learning_rate() -> None:
    sums = force_sums(forces(some_logits(2), [0, 1], [3, 4], [0.5, -0.5]), trained=10)
    values = force_values(add_sums([sums, sums]), learning_rate=0.1)
    assert values["force_up_norm"] == pytest.approx(2 * sums["up"])
    assert values["force_up_token_norm"] == pytest.approx(sums["up"] / 10)
    assert values["force_down_step_norm"] == pytest.approx(0.2 * sums["down"])
    assert values["squeeze_law_step_nats"] == pytest.approx(0.2 * sums["drain"])


def test_what_is_undefined_is_absent() -> None:
    up = force_values(force_sums(forces(some_logits(1), [0], [1], [1.0])))
    assert "valley_force_ratio" not in up
    assert "force_chosen_up_norm" not in up
    assert "force_up_step_norm" not in up


def test_a_gradient_that_is_not_finite_leaves_the_forces_absent() -> None:
    broken = force_values(force_sums(forces(some_logits(2), [0, 1], [1, 2], [math.nan, -1.0])))
    assert set(broken) == {"force_tokens"}


def test_a_batch_without_trained_tokens_has_no_force() -> None:
    nothing = forces(some_logits(1), [0], [1], [1.0]).pick(torch.zeros(0, dtype=torch.long))
    assert force_values(force_sums(nothing))["force_up_norm"] == 0
