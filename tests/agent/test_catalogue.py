from __future__ import annotations

import re

import numpy as np
import pytest

from forcegauge.catalogue import (
    FAILURE_REASONS,
    INFO_LABELS,
    LABEL_VALUES,
    METRICS,
    metric,
    signal_metric,
)
from forcegauge.forces import VALLEY_MASS, force_values
from forcegauge.greedy import NGRAM
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.rl import Samples, rl_signals
from forcegauge.scores import PREFIX_TOKENS, STATISTICS, TOP_K, Scores, TokenScores
from forcegauge.signals import (
    NOISE_MULTIPLE,
    PEAKED_MASS,
    PEAKED_MULTIPLE,
    SIZE_FLOOR_NATS,
    signals,
)

CONTRACT = {
    "run_info",
    "run_active",
    "run_state{state}",
    "train_step",
    "probe_step",
    "probe_timestamp_seconds",
    "probe_duration_seconds",
    "probe_overhead_ratio",
    "probe_failures_total{reason}",
    "logprob_nats{response_type}",
    "logprob_change_nats{response_type}",
    "argmax_logprob_nats{response_type}",
    "argmax_mass_ratio{response_type}",
    "argmax_mass_change_ratio{response_type}",
    "entropy_nats{response_type}",
    "noise_floor_nats{response_type}",
    "mass_ratio{part}",
    "squeeze_nats",
    "squeeze_prefix_nats",
    "squeezed_ratio",
    "hallucination_pressure_nats",
    "preference_margin_nats",
    "displacement_nats",
    "greedy_repetition_ratio",
    "eos_logprob_nats",
    "force_norm{direction}",
    "valley_force_ratio",
    "alarm_value{alarm}",
    "alarm_threshold{alarm}",
    "alarm_streak{alarm}",
    "alarm_streak_needed{alarm}",
}

BESIDE_SCORES = {
    "reference_change_nats{response_type}",
    "probes_scored",
    "verdict_since_step",
    "alarm_since_step{alarm}",
}

BESIDE_CONTRACT = {
    "top_mass_ratio{response_type}",
    "top_mass_change_ratio{response_type}",
    "sample_agreement_ratio",
    "sample_distinct_ratio",
    "sample_length_tokens",
    "sample_length_drift_ratio",
    "sample_ended_ratio",
}


def test_holds_exactly_the_metrics_that_dashboards_and_rules_build_on() -> None:
    shown = set()
    for row in METRICS:
        labels = () if row.labels == INFO_LABELS else row.labels
        shown.add(row.name + ("{" + ",".join(labels) + "}" if labels else ""))
    assert shown == {f"forcegauge_{name}" for name in CONTRACT | BESIDE_CONTRACT | BESIDE_SCORES}
    assert len(METRICS) == len(shown)


def test_counters_and_only_counters_end_in_total() -> None:
    assert {r.name for r in METRICS if r.kind == "counter"} == {
        r.name for r in METRICS if r.name.endswith("_total")
    }


def test_units_stand_at_the_end_of_the_names() -> None:
    for row in METRICS:
        suffix = re.search(r"_(nats|ratio|seconds)$", row.name)
        if row.unit in ("nats", "ratio", "seconds") or suffix:
            assert suffix, row.name
            assert suffix[1] == row.unit, row.name


def test_log_probs_and_shares_say_their_unit_in_the_help() -> None:
    for row in METRICS:
        words = {"nats": "nats", "ratio": "1", "seconds": "seconds"}
        if row.unit in words and row.name != "forcegauge_probe_timestamp_seconds":
            assert words[row.unit] in row.meaning, row.name


def test_every_metric_has_one_sentence_and_a_formula() -> None:
    for row in METRICS:
        assert row.meaning.endswith("."), row.name
        assert not re.search(r"\. [A-Z]", row.meaning), row.name
        assert "\n" not in row.meaning
        assert row.formula, row.name


def test_every_label_has_a_listed_set_of_values() -> None:
    labels = {label for row in METRICS for label in row.labels} - set(INFO_LABELS)
    assert labels == LABEL_VALUES.keys()
    assert all(0 < len(values) <= 12 for values in LABEL_VALUES.values())
    assert "run" not in labels


def test_label_values_are_those_of_the_rest_of_the_agent() -> None:
    assert LABEL_VALUES["response_type"] == RESPONSE_TYPES
    assert set(LABEL_VALUES["state"]) == {
        "warming",
        "learning",
        "squeezing",
        "diverging",
        "collapsed",
    }
    assert len(LABEL_VALUES["alarm"]) == 10
    assert LABEL_VALUES["reason"] == FAILURE_REASONS


def test_finds_a_metric_with_or_without_the_prefix() -> None:
    assert metric("squeeze_nats") is metric("forcegauge_squeeze_nats")
    with pytest.raises(KeyError):
        metric("forcegauge_nothing")


@pytest.mark.parametrize(
    ("signal", "name", "labels"),
    [
        ("squeeze_nats", "squeeze_nats", ()),
        ("mass_target_ratio", "mass_ratio", ("target",)),
        ("mass_rest_ratio", "mass_ratio", ("rest",)),
        ("force_up_norm", "force_norm", ("up",)),
        ("force_down_norm", "force_norm", ("down",)),
        ("valley_force_ratio", "valley_force_ratio", ()),
        ("top_mass_greedy_ratio", "top_mass_ratio", ("greedy",)),
        ("top_mass_change_chosen_ratio", "top_mass_change_ratio", ("chosen",)),
        ("reference_change_chosen_nats", "reference_change_nats", ("chosen",)),
        ("sample_length_tokens", "sample_length_tokens", ()),
    ],
)
def test_a_signal_leads_to_its_metric(signal: str, name: str, labels: tuple[str, ...]) -> None:
    assert signal_metric(signal) == (metric(name), labels)


@pytest.mark.parametrize("signal", ["squeeze_excess_nats", "train_step", "logprob_nats", "mass"])
def test_what_is_no_exported_signal_has_no_metric(signal: str) -> None:
    assert signal_metric(signal) is None


def test_every_signal_metric_is_a_signal_that_scores_can_define() -> None:
    baseline, now = (_scores(seed) for seed in (0, 1))
    # a preference margin that grows, so that displacement is defined
    now.values["logprob_mean"][:, 1] -= 5.0
    found = {signal_metric(name) for name in signals(now, baseline, {})} - {None}
    by_scores = {row.name for row, _ in filter(None, found)}
    first, last = (METRICS.index(metric(n)) for n in ("mass_ratio", "eos_logprob_nats"))
    expected = {row.name for row in METRICS[first : last + 1]}
    assert by_scores == expected - {"forcegauge_greedy_repetition_ratio"}


def test_signals_of_candidates_and_samples_have_the_catalogues_names() -> None:
    samples = Samples()
    samples.add([[(1, 2), (1, 3)]], [[True, False]])
    signals = {
        **rl_signals(_scores(1), _scores(0)),
        **samples.take(),
        "sample_length_drift_ratio": 0.0,
    }
    exported = {found[0].name for name in signals if (found := signal_metric(name))}
    assert exported == {f"forcegauge_{name.split('{')[0]}" for name in BESIDE_CONTRACT}


def test_sizes_in_formulas_are_those_of_the_code() -> None:
    assert f"pi(y_t) < {VALLEY_MASS} /" in metric("valley_force_ratio").formula
    assert f"n = {NGRAM} tokens" in metric("greedy_repetition_ratio").formula
    assert f"t <= {PREFIX_TOKENS}" in metric("squeeze_prefix_nats").formula
    tau = f"max({SIZE_FLOOR_NATS} nats, {NOISE_MULTIPLE:g} x noise)"
    peaked = f"pi* > {PEAKED_MASS}: d < -{PEAKED_MULTIPLE:g} tau"
    assert f"{TOP_K} likeliest" in metric("top_mass_ratio").meaning
    assert f"k<={TOP_K}" in metric("top_mass_ratio").formula
    assert tau in metric("squeezed_ratio").formula
    assert peaked in metric("squeezed_ratio").formula


def test_forces_have_the_names_that_the_capture_gives_them() -> None:
    sums = {"up": 1.0, "down": 2.0, "valley": 1.0, "push": 1.0, "drain": 1.0, "tokens": 4.0}
    exported = {found[0].name for name in force_values(sums) if (found := signal_metric(name))}
    assert exported == {"forcegauge_force_norm", "forcegauge_valley_force_ratio"}
    assert {"force_up_norm", "force_down_norm"} <= force_values(sums).keys()


def _scores(seed: int) -> Scores:
    random = np.random.default_rng(seed)
    values = {name: random.uniform(0.1, 0.6, (4, len(RESPONSE_TYPES))) for name in STATISTICS}
    none = np.empty(0, np.int32)
    tokens = TokenScores(none, none, none, none.astype(np.int64), {})
    return Scores(("a", "b", "c", "d"), RESPONSE_TYPES, values, tokens)
