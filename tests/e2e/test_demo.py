"""The paper's signature in the demo's real run, and what a user sees of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from forcegauge.catalogue import METRICS
from tests.e2e.conftest import DemoRun

pytestmark = pytest.mark.slow

UNTRAINED = (
    "chosen_rephrase",
    "rejected_rephrase",
    "chosen_offtopic",
    "rejected_offtopic",
    "other_prompt",
    "unseen_prompt",
    "unrelated",
)


def value(run: DemoRun, query: str, **labels: str) -> float:
    rows = [row for row in run.series[query] if labels.items() <= dict(row["metric"]).items()]  # type: ignore[call-overload]
    (row,) = rows
    return float(row["value"][1])  # type: ignore[index]


def test_sft_pulls_chosen_up_and_other_prompts_answers_with_it(squeezed: DemoRun) -> None:
    change = {t: squeezed.change("sft", t, "logprob_mean") for t in ("chosen", *UNTRAINED)}
    assert change["chosen"] > 1.5
    assert change["other_prompt"] > 0.5
    assert change["other_prompt"] > change["unseen_prompt"] + 0.5
    assert squeezed.probes("sft")[-1]["signals"]["hallucination_pressure_nats"] > 0.5


def test_in_sft_rephrases_rise_and_then_stay(squeezed: DemoRun) -> None:
    probes = len(squeezed.probes("sft"))
    path = [squeezed.change("sft", "chosen_rephrase", "logprob_mean", i) for i in range(probes)]
    first_half, second_half = path[probes // 2] - path[0], path[-1] - path[probes // 2]
    assert first_half > 0.4
    assert abs(second_half) < 0.5 * first_half


def test_in_sft_shuffled_and_random_words_fall_behind(squeezed: DemoRun) -> None:
    rephrase = squeezed.change("sft", "chosen_rephrase", "logprob_mean")
    for name in ("shuffled", "random_words"):
        assert squeezed.change("sft", name, "logprob_mean") < rephrase - 0.3


def test_dpo_pushes_rejected_and_every_untrained_type_down(squeezed: DemoRun) -> None:
    for name in ("rejected", *UNTRAINED, "shuffled", "random_words"):
        assert squeezed.change("dpo", name, "logprob_mean") < -0.5, name


def test_in_dpo_the_argmax_gains_along_rejected_and_rephrases(squeezed: DemoRun) -> None:
    for name in ("rejected", "chosen_rephrase", "rejected_rephrase"):
        assert squeezed.change("dpo", name, "argmax_logprob_mean") > 0.1, name


def test_in_dpo_chosen_rises_first_and_falls_later(squeezed: DemoRun) -> None:
    probes = len(squeezed.probes("dpo"))
    path = [squeezed.change("dpo", "chosen", "logprob_mean", i) for i in range(probes)]
    peak = path.index(max(path))
    assert 0 < peak < probes - 1
    assert path[-1] < path[peak] - 0.1


def test_the_squeeze_index_grows(squeezed: DemoRun) -> None:
    path = [probe["signals"]["squeeze_nats"] for probe in squeezed.probes("dpo")][2:]
    assert all(later > earlier for earlier, later in itertools.pairwise(path))
    assert path[-1] > 1.5


def test_only_dpo_pushes_down(squeezed: DemoRun) -> None:
    forces = [line for line in squeezed.lines if line["kind"] == "forces"]
    down = {line["phase"]: line["force_down_norm"] for line in forces}
    assert down["sft"] == 0
    assert down["dpo"] > 0


def test_after_sft_on_both_answers_the_same_dpo_squeezes_a_fraction(
    squeezed: DemoRun, healthy: DemoRun
) -> None:
    ours, theirs = (r.probes("dpo")[-1]["signals"]["squeeze_nats"] for r in (healthy, squeezed))
    assert ours < 0.5 * theirs
    for name in ("chosen_rephrase", "other_prompt"):
        assert healthy.change("dpo", name, "logprob_mean") > -0.5, name
        assert healthy.change("dpo", name, "logprob_mean") > 0.5 * squeezed.change(
            "dpo", name, "logprob_mean"
        )
    assert healthy.change("dpo", "chosen", "logprob_mean") > 0


def test_the_verdicts_are_squeezing_and_learning(squeezed: DemoRun, healthy: DemoRun) -> None:
    assert squeezed.probes("sft")[-1]["verdict"] == "learning"
    assert squeezed.probes("dpo")[-1]["verdict"] == "squeezing"
    assert healthy.probes("sft")[-1]["verdict"] == "learning"
    assert healthy.probes("dpo")[-1]["verdict"] == "learning"


def test_squeezing_is_said_before_chosen_has_lost_much(squeezed: DemoRun) -> None:
    verdict = next(
        line for line in squeezed.lines if line.get("verdict") == "squeezing" and "advice" in line
    )
    steps = [probe["step"] for probe in squeezed.probes("dpo")]
    at = steps.index(verdict["step"])
    assert squeezed.change("dpo", "chosen", "logprob_mean", at) > -0.5
    assert verdict["since_step"] < verdict["step"]
    assert verdict["advice"]


def test_a_real_prometheus_scraped_the_run_while_it_trained(squeezed: DemoRun) -> None:
    last = squeezed.probes("dpo")[-1]
    assert value(squeezed, "max_over_time(forcegauge_train_step[1h])") == last["step"]
    squeeze = value(squeezed, "max_over_time(forcegauge_squeeze_nats[1h])")
    # the last probe is scraped only if a scrape comes before the process ends
    recorded = [probe["signals"]["squeeze_nats"] for probe in squeezed.probes("dpo")[-2:]]
    assert min(abs(squeeze - known) for known in recorded) < 1e-6
    states = "max_over_time(forcegauge_run_state[1h])"
    assert value(squeezed, states, state="squeezing") == 1
    assert value(squeezed, states, state="diverging") == 0
    (names,) = squeezed.series[
        'count(count by (__name__) (last_over_time({job="forcegauge",__name__=~"force.+"}[1h])))'
    ]
    assert 20 < float(names["value"][1]) <= len(METRICS)  # type: ignore[index]


def test_the_demo_tells_in_words_what_happened(squeezed: DemoRun, healthy: DemoRun) -> None:
    assert "Verdict: squeezing" in squeezed.printed
    assert "Verdict: learning" in healthy.printed
    latest = healthy.probes("dpo")[-1]["signals"]["squeeze_nats"]
    assert f"squeeze index {latest:+.2f} nats. Nothing to do." in " ".join(healthy.printed.split())
    for run in (squeezed, healthy):
        assert "/metrics" in run.printed
        assert (run.directory / "report.html").stat().st_size > 100_000
        assert "report.html" in run.printed


def test_the_demo_names_the_last_healthy_checkpoint(squeezed: DemoRun, healthy: DemoRun) -> None:
    for run in (squeezed, healthy):
        saved = [line["path"] for line in run.lines if line["kind"] == "checkpoint"]
        assert len(saved) == 3
        assert all(Path(path).is_dir() for path in saved)
    assert f"{healthy.directory}/dpo/checkpoint-24, of step" in healthy.printed
    assert "/dpo/checkpoint-24, of step" not in squeezed.printed


def test_the_agent_met_no_error(squeezed: DemoRun, healthy: DemoRun) -> None:
    for run in (squeezed, healthy):
        assert [line for line in run.lines if line["kind"] == "error"] == []
        assert run.lines[-1]["reason"] == "finished"
