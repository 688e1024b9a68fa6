from __future__ import annotations

from typing import Any

from forcegauge.demo.words import direction, rows, sentences
from forcegauge.probes import UNTRAINED_NATURAL
from forcegauge.record import Line
from forcegauge.reporting.story import Story, tell

TYPES = ("chosen", "rejected", *UNTRAINED_NATURAL)
BASE = dict.fromkeys(TYPES, -4.0)


def probe(phase: str, step: int, levels: dict[str, float], argmax: float) -> Line:
    scores: dict[str, Any] = {
        name: {"logprob_mean": {"mean": level}, "argmax_logprob_mean": {"mean": argmax}}
        for name, level in levels.items()
    }
    head = {"schema": 1, "kind": "probe", "run": "demo", "phase": phase, "step": step, "time": 1.0}
    signals = {"squeeze_nats": 1.5}
    return {**head, "scores": scores, "signals": signals, "noise": {}, "verdict": "learning"}


def story(*probes: Line) -> Story:
    return tell(list(probes))


def squeezed() -> Story:
    learned = {**BASE, "chosen": -1.0, "other_prompt": -2.8, "unseen_prompt": -3.7}
    fallen = {name: level - 2.0 for name, level in learned.items()}
    return story(
        probe("sft", 0, BASE, -1.0),
        probe("sft", 20, learned, -1.0),
        probe("dpo", 20, learned, -1.0),
        probe("dpo", 28, {**learned, "chosen": -0.9}, -0.9),
        probe("dpo", 44, {**fallen, "chosen": -1.3}, -0.7),
    )


def test_a_row_follows_a_type_through_both_phases() -> None:
    row = next(row for row in rows(squeezed()) if row.response_type == "chosen_rephrase")
    assert (row.before, row.after_sft, row.after_dpo) == (-4.0, -4.0, -6.0)
    assert row.words == "SFT level, DPO squeezed"


def test_what_is_trained_on_is_never_called_squeezed() -> None:
    words = {row.response_type: row.words for row in rows(squeezed())}
    assert words["rejected"] == "SFT level, DPO far down"
    assert words["chosen"] == "SFT far up, DPO down"


def test_a_fall_without_a_gain_of_the_argmax_is_no_squeeze() -> None:
    fallen = {name: level - 2.0 for name, level in BASE.items()}
    told = story(probe("dpo", 0, BASE, -1.0), probe("dpo", 8, fallen, -1.0))
    assert {row.words for row in rows(told)} == {"DPO far down"}


def test_sentences_give_the_numbers_of_each_phase() -> None:
    sft, dpo = sentences(squeezed())
    assert "by +3.00 nats per token, and by +1.20" in sft
    assert "against +0.30" in sft
    assert "of 7 kinds of answers that it never trained on, 7 fell" in dpo
    assert "ended at -0.30, after a best of +0.10 at step 28" in dpo


def test_a_run_that_stopped_early_is_told_as_far_as_it_got() -> None:
    told = story(probe("sft", 0, BASE, -1.0))
    assert sentences(told) == []
    assert rows(told)[0].after_dpo is None
    assert rows(story()) == []


def test_small_changes_are_level_and_large_ones_far() -> None:
    assert [direction(x) for x in (0.1, -0.1, 0.5, -0.5, 1.5, -1.5)] == [
        "level",
        "level",
        "up",
        "down",
        "far up",
        "far down",
    ]
