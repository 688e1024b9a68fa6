"""Alarms and verdict on made-up signal series: what must fire, and each near miss."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from forcegauge.alarms import ALARMS, COLLAPSE, VERDICTS
from forcegauge.detectors import Detector, Judgement

SQUEEZED = {
    "squeeze_excess_nats": 0.9,
    "squeezed_probes_ratio": 0.6,
    "unearned_fall_nats": 0.9,
    "chosen_change_nats": -0.05,
    "untrained_change_nats": -0.9,
}
CALM = {
    "squeeze_excess_nats": 0.1,
    "squeezed_probes_ratio": 0.0,
    "unearned_fall_nats": -0.05,
    "chosen_change_nats": 0.4,
    "untrained_change_nats": 0.05,
}
DIVERGED = {**CALM, "chosen_change_nats": -1.5, "untrained_change_nats": -1.8}


def run(
    probes: Iterable[dict[str, float]],
    pushes_down: bool | None = True,
    noise: dict[str, float] | None = None,
) -> list[Judgement]:
    """One judgement per probe; probes stand at steps 2, 4, 6, ..."""
    detector = Detector(0, pushes_down)
    return [detector.update(2 * (i + 1), probe, noise or {}) for i, probe in enumerate(probes)]


def test_the_first_probes_are_warming_then_learning() -> None:
    verdicts = [judgement.verdict for judgement in run([CALM] * 4)]
    assert verdicts == ["warming", "warming", "learning", "learning"]


def test_squeezing_needs_two_probes_running_and_begins_at_the_first_of_them() -> None:
    judgements = run([CALM, CALM, SQUEEZED, SQUEEZED])
    assert [j.verdict for j in judgements[2:]] == ["learning", "squeezing"]
    assert judgements[-1].since_step == 6
    assert "0.90 nats" in judgements[-1].evidence
    assert judgements[-1].advice


def test_one_quiet_probe_between_starts_the_count_again() -> None:
    assert run([SQUEEZED, CALM, SQUEEZED, CALM, SQUEEZED])[-1].verdict == "learning"


def test_an_undefined_probe_neither_counts_nor_clears() -> None:
    judgements = run([SQUEEZED, {}, {"squeeze_excess_nats": float("nan")}, SQUEEZED])
    assert judgements[2].verdict == "learning"
    assert judgements[3].verdict == "squeezing"


def test_an_alarm_clears_after_three_quiet_probes() -> None:
    judgements = run([SQUEEZED] * 3 + [CALM] * 3)
    assert [j.verdict for j in judgements[3:]] == ["squeezing", "squeezing", "learning"]
    assert [s.name for s in judgements[-1].changed] == ["squeezing"]


def test_a_loss_that_pushes_nothing_down_cannot_squeeze() -> None:
    assert run([SQUEEZED] * 6, pushes_down=False)[-1].verdict == "learning"


def test_with_an_unknown_loss_twice_the_size_is_needed_and_it_is_said() -> None:
    assert run([SQUEEZED] * 6, pushes_down=None)[-1].verdict == "learning"
    large = {**SQUEEZED, "squeeze_excess_nats": 1.1}
    judged = run([large] * 6, pushes_down=None)[-1]
    assert judged.verdict == "squeezing"
    assert "unknown" in judged.evidence


def test_noise_raises_a_threshold() -> None:
    assert run([SQUEEZED] * 6, noise={"squeeze_excess_nats": 0.4})[-1].verdict == "learning"


def test_chosen_and_untrained_falling_together_from_the_start_is_diverging() -> None:
    judged = run([DIVERGED] * 3)[-1]
    assert judged.verdict == "diverging"
    assert judged.since_step == 2


def test_chosen_falling_late_in_a_squeeze_stays_squeezing() -> None:
    late = {**SQUEEZED, "chosen_change_nats": -2.3, "untrained_change_nats": -3.0}
    assert run([SQUEEZED] * 4 + [late] * 6)[-1].verdict == "squeezing"


def test_losses_that_are_not_finite_are_diverging() -> None:
    assert run([{"loss_nonfinite_ratio": 1.0}] * 2)[-1].verdict == "diverging"


def test_repetition_on_top_of_squeezing_is_collapsed_and_latched() -> None:
    repeating = {
        **SQUEEZED,
        "greedy_repetition_ratio": 0.9,
        "greedy_repetition_change_ratio": 0.8,
    }
    judgements = run([SQUEEZED] * 3 + [repeating] * 2 + [CALM] * 9)
    assert judgements[4].verdict == "collapsed"
    assert judgements[-1].verdict == "collapsed"
    assert judgements[-1].since_step == judgements[4].since_step


def test_a_collapse_sign_alone_needs_twice_its_streak() -> None:
    silent_eos = {**CALM, "eos_change_nats": -5.0}
    verdicts = [j.verdict for j in run([silent_eos] * 6)]
    assert verdicts[:5].count("collapsed") == 0
    assert verdicts[5] == "collapsed"


def test_every_alarm_names_a_meaning_an_advice_and_at_least_two_probes() -> None:
    assert len({row.name for row in ALARMS}) == len(ALARMS) == 10
    assert set(COLLAPSE) <= {row.name for row in ALARMS}
    for row in ALARMS:
        assert row.meaning
        assert row.advice
        assert row.streak >= 2


@pytest.mark.parametrize("series", [[CALM] * 9, [SQUEEZED] * 9, [DIVERGED] * 9])
def test_half_the_probe_rate_gives_the_same_final_verdict(series: list[dict[str, float]]) -> None:
    full, half = Detector(0, True), Detector(0, True)
    for step, probe in enumerate(series, start=1):
        dense = full.update(step, probe, {})
        sparse = half.update(step, probe, {}) if step % 2 else None
    assert sparse is not None
    assert dense.verdict == sparse.verdict
    assert dense.verdict in VERDICTS


def test_an_alarm_that_is_on_while_the_run_learns_gives_its_evidence_and_advice() -> None:
    pressed = {**CALM, "hallucination_pressure_nats": 0.9, "other_prompt_change_nats": 1.1}
    judged = run([pressed] * 4)[-1]
    assert judged.verdict == "learning"
    assert judged.evidence.startswith("hallucination_pressure is on. Since step 2: ")
    assert "epochs" in judged.advice


def test_measured_forces_overrule_what_the_loss_is_said_to_do() -> None:
    pushed = {**SQUEEZED, "force_down_norm": 0.2}
    assert run([pushed] * 3, pushes_down=False)[-1].verdict == "squeezing"
    still = {**SQUEEZED, "force_down_norm": 0.0}
    assert run([still] * 3, pushes_down=True)[-1].verdict == "learning"


def test_untrained_answers_that_lose_only_what_chosen_gains_are_learning() -> None:
    earned = {**SQUEEZED, "chosen_change_nats": 0.8, "unearned_fall_nats": 0.1}
    assert run([earned] * 6)[-1].verdict == "learning"


def test_a_clipped_loss_that_no_longer_pushes_has_squeezed_all_the_same() -> None:
    pushed, clipped = ({**SQUEEZED, "force_down_norm": size} for size in (0.2, 0.0))
    assert run([pushed, clipped, clipped])[-1].verdict == "squeezing"
