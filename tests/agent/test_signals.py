"""Signals against hand-computed values, and the traps that fool simpler definitions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcegauge.probes import RESPONSE_TYPES
from forcegauge.scores import STATISTICS, FloatArray, Scores, TokenScores
from forcegauge.signals import (
    sharpening,
    signal_noise,
    signals,
    squeeze_excess,
    squeeze_index,
    summarise,
    threshold,
    type_noise,
)

Tokens = npt.NDArray[np.int64]

PROBES = 4
TYPES = tuple(name for name in RESPONSE_TYPES if name != "greedy")
EMPTY = np.empty(0, np.int32)
NOTHING = TokenScores(EMPTY, EMPTY, EMPTY, np.empty(0, np.int64), {})


def scores(types: tuple[str, ...] = TYPES, **values: FloatArray) -> Scores:
    """Scores with tokens everywhere, log-prob -2, argmax log-prob -1, mass 0.4, entropy 2."""
    shape = (PROBES, len(types))
    base = {name: np.full(shape, np.nan) for name in STATISTICS}
    start = {"tokens": 10.0, "argmax_mass": 0.4, "entropy": 2.0}
    start |= {f"logprob_{w}": -2.0 for w in ("mean", "prefix")}
    start |= {f"argmax_logprob_{w}": -1.0 for w in ("mean", "prefix")}
    base |= {name: np.full(shape, value) for name, value in start.items()}
    ids = tuple(f"p{i}" for i in range(PROBES))
    return Scores(ids, types, {**base, **values}, NOTHING)


def moved(base: Scores, statistic: str, **by: float) -> FloatArray:
    """The statistic's array with whole types moved."""
    array = base.values[statistic].copy()
    for name, amount in by.items():
        array[:, base.types.index(name)] += amount
    return array


def test_an_unchanged_model_has_no_squeeze_no_pressure_and_no_displacement() -> None:
    base = scores()
    found = signals(base, base, {})
    assert found["squeeze_nats"] == 0
    assert found["squeezed_ratio"] == 0
    assert found["hallucination_pressure_nats"] == 0
    assert "displacement_nats" not in found


def test_squeeze_index_is_the_mean_change_of_the_gap_over_untrained_natural_types() -> None:
    base = scores()
    later = scores(
        logprob_mean=moved(base, "logprob_mean", chosen=-5, other_prompt=-0.7, shuffled=-9),
        argmax_logprob_mean=moved(base, "argmax_logprob_mean", unseen_prompt=0.35),
    )
    assert squeeze_index(later, base, "mean") == pytest.approx((0.7 + 0.35) / 7)


def test_signals_of_missing_types_are_absent() -> None:
    base = scores(types=("chosen",))
    found = signals(base, base, {})
    for name in ("squeeze_nats", "hallucination_pressure_nats", "preference_margin_nats"):
        assert name not in found
    assert found["chosen_change_nats"] == 0


def test_hallucination_pressure_is_other_prompt_beyond_unseen_prompt() -> None:
    base = scores()
    later = scores(
        logprob_mean=moved(base, "logprob_mean", chosen=2.0, other_prompt=1.5, unseen_prompt=-0.1)
    )
    found = signals(later, base, {})
    assert found["hallucination_pressure_nats"] == pytest.approx(1.6)
    assert found["hallucination_pressure_share_ratio"] == pytest.approx(0.8)


def test_displacement_needs_a_margin_that_grew() -> None:
    base = scores()
    fell_together = scores(logprob_mean=moved(base, "logprob_mean", chosen=-1, rejected=-1))
    displaced = scores(logprob_mean=moved(base, "logprob_mean", chosen=-1, rejected=-4))
    assert "displacement_nats" not in signals(fell_together, base, {})
    assert signals(displaced, base, {})["displacement_nats"] == pytest.approx(1)


def test_a_pair_is_squeezed_only_when_the_argmax_gains_along_it() -> None:
    base = scores()
    fall = moved(base, "logprob_mean", other_prompt=-1)
    rise = moved(base, "argmax_logprob_mean", other_prompt=0.3)
    only_fall = signals(scores(logprob_mean=fall), base, {})
    both = signals(scores(logprob_mean=fall, argmax_logprob_mean=rise), base, {})
    assert only_fall["squeezed_ratio"] == 0
    assert both["squeezed_ratio"] == pytest.approx(1 / 7)


def test_where_the_argmax_held_nearly_all_mass_a_large_fall_alone_is_squeezed() -> None:
    base = scores(argmax_mass=np.full((PROBES, len(TYPES)), 0.97))
    later = scores(logprob_mean=moved(base, "logprob_mean", unrelated=-5))
    assert signals(later, base, {})["squeezed_ratio"] == pytest.approx(1 / 7)


def test_a_collapse_of_the_first_tokens_counts_a_probe_as_squeezed() -> None:
    base = scores()
    natural = dict.fromkeys(TYPES[2:9], -1.0)
    up = dict.fromkeys(TYPES[2:9], 0.5)
    later = scores(
        logprob_prefix=moved(base, "logprob_prefix", **natural),
        argmax_logprob_prefix=moved(base, "argmax_logprob_prefix", **up),
    )
    found = signals(later, base, {})
    assert found["squeezed_ratio"] == 0
    assert found["squeezed_probes_ratio"] == 1
    assert found["squeeze_prefix_nats"] == pytest.approx(1.5)


def from_logits(logits: FloatArray, targets: Tokens) -> Scores:
    """Scores of one probe: logits [type, token, vocabulary], targets [type, token]."""
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    target = np.take_along_axis(logprobs, targets[..., None], -1)[..., 0].mean(-1)[None]
    argmax = logprobs.max(-1).mean(-1)[None]
    entropy = -(np.exp(logprobs) * logprobs).sum(-1).mean(-1)[None]
    return scores(
        logprob_mean=target,
        logprob_prefix=target,
        argmax_logprob_mean=argmax,
        argmax_logprob_prefix=argmax,
        entropy=entropy,
    )


def distributions(seed: int, spread: float) -> tuple[FloatArray, Tokens]:
    """Random logits of every type, and its tokens."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (len(TYPES), 6, 40))
    return logits, random.integers(0, 40, logits.shape[:2])


@settings(deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0.3, 6), s=st.floats(1, 20))
def test_mere_sharpening_raises_the_index_but_not_the_excess(
    seed: int, spread: float, s: float
) -> None:
    logits, targets = distributions(seed, spread)
    base, sharper = from_logits(logits, targets), from_logits(s * logits, targets)
    assert sharpening(sharper, base) == pytest.approx(s)
    assert squeeze_index(sharper, base, "mean") >= 0
    assert squeeze_excess(sharper, base, "mean") == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), push=st.floats(0.2, 3))
def test_a_push_down_that_grows_every_gap_alike_is_no_sharpening(seed: int, push: float) -> None:
    logits, targets = distributions(seed, 2.0)
    base = from_logits(logits, targets)
    gaps = logits.max(-1) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    later = logits.copy()
    fallen = np.take_along_axis(logits, targets[..., None], -1) - push * gaps[..., None]
    np.put_along_axis(later, targets[..., None], fallen, -1)
    found = from_logits(later, targets)
    assert sharpening(found, base) < 1 + 0.1 * push, "by gaps alone it could be 1 + push"
    index = squeeze_index(found, base, "mean")
    assert squeeze_excess(found, base, "mean") > 0.9 * index > 0


def test_a_squeeze_keeps_its_excess_when_some_types_do_not_move() -> None:
    base = scores()
    later = scores(logprob_mean=moved(base, "logprob_mean", other_prompt=-2, unrelated=-2))
    assert squeeze_excess(later, base, "mean") == pytest.approx(4 / 7)


def test_threshold_has_a_size_in_nats_and_grows_with_noise() -> None:
    assert threshold(0.0) == 0.1
    assert threshold(0.2) == pytest.approx(1.0)


def test_noise_is_the_standard_error_over_probes_where_it_exceeds_the_layout_noise() -> None:
    base = scores()
    spread = base.values["logprob_mean"] + np.array([[0.0], [1.0], [2.0], [3.0]])
    noise = type_noise(scores(logprob_mean=spread), base, {"chosen": 0.01})
    assert noise["chosen"] == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)
    assert type_noise(base, base, {"chosen": 0.01})["chosen"] == 0.01
    errors = signal_noise(scores(logprob_mean=spread), base)
    assert errors["squeeze_excess_nats"] == pytest.approx(noise["chosen"])
    assert errors["hallucination_pressure_nats"] == 0


def test_responses_without_a_finite_score_are_counted() -> None:
    base = scores()
    broken = scores(logprob_mean=np.full((PROBES, len(TYPES)), np.nan))
    assert signals(broken, base, {})["nonfinite_ratio"] == 1
    assert signals(base, base, {})["nonfinite_ratio"] == 0


def test_summary_holds_quantiles_and_leaves_out_what_is_not_defined() -> None:
    values = np.array([[-1.0], [-2.0], [-3.0], [np.nan]])
    summary = summarise(scores(types=("chosen",), logprob_mean=values))
    assert summary["chosen"]["logprob_mean"] == {
        "mean": -2.0,
        "q10": pytest.approx(-2.8),
        "q50": -2.0,
        "q90": pytest.approx(-1.2),
        "n": 3,
    }
    assert "eos_logprob" not in summary["chosen"]


def test_an_unearned_fall_is_what_untrained_answers_lose_beyond_the_gain_of_chosen() -> None:
    base = scores()
    fall = dict.fromkeys(TYPES[2:9], -1.0)
    for gain, unearned in ((0.4, 0.6), (-0.4, 1.0)):
        later = scores(logprob_mean=moved(base, "logprob_mean", chosen=gain, **fall))
        assert signals(later, base, {})["unearned_fall_nats"] == pytest.approx(unearned)
