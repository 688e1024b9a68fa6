"""What happened in the demo, in words: read from its record, so that it says what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from forcegauge.probes import UNTRAINED_NATURAL
from forcegauge.reporting.story import Phase, Story

LEVEL_NATS = 0.15
FAR_NATS = 1.0


@dataclass(frozen=True)
class Row:
    """One response type over the run: mean log-probs in nats per token, None where not reached."""

    response_type: str
    before: float | None
    after_sft: float | None
    after_dpo: float | None
    argmax_change: float | None
    """Change of the argmax log-prob along this type's responses over DPO."""
    words: str


def rows(story: Story) -> list[Row]:
    """One row per response type, in reading order; phases that were not begun stay empty."""
    return [_row(story, name) for name in story.types] if story.phases else []


def sentences(story: Story) -> list[str]:
    """What SFT did and what DPO did, as far as the run got."""
    told = {"sft": _sft_sentence, "dpo": _dpo_sentence}
    return [told[p.name](p) for p in story.phases if p.name in told and len(p.probes) > 1]


def _row(story: Story, name: str) -> Row:
    phases = {phase.name: phase for phase in story.phases}
    ends = {key: phase.levels("logprob_mean", name)[-1] for key, phase in phases.items()}
    argmax = _last(phases["dpo"], name, "argmax_logprob_mean") if "dpo" in phases else None
    words = ", ".join(f"{key.upper()} {_fate(phase, name)}" for key, phase in phases.items())
    before = story.phases[0].levels("logprob_mean", name)[0]
    return Row(name, before, ends.get("sft"), ends.get("dpo"), argmax, words)


def _fate(phase: Phase, name: str) -> str:
    fell = _last(phase, name) < -LEVEL_NATS
    gained = _last(phase, name, "argmax_logprob_mean") > LEVEL_NATS
    untrained = name not in ("chosen", "rejected")
    squeezed = phase.name == "dpo" and untrained and fell and gained
    return "squeezed" if squeezed else direction(_last(phase, name))


def direction(change: float) -> str:
    """A change in nats per token as a word or two."""
    if abs(change) < LEVEL_NATS:
        return "level"
    return ("far " if abs(change) > FAR_NATS else "") + ("up" if change > 0 else "down")


def _last(phase: Phase, name: str, statistic: str = "logprob_mean") -> float:
    return phase.changes(statistic, name)[-1] or 0.0


def _sft_sentence(phase: Phase) -> str:
    other, unseen = _last(phase, "other_prompt"), _last(phase, "unseen_prompt")
    return (
        f"SFT moved the chosen answers by {_last(phase, 'chosen'):+.2f} nats per token, and by "
        f"{other:+.2f} the answers that belong to other training prompts, against {unseen:+.2f} "
        "for answers to prompts that it never saw: the difference is hallucination pressure."
    )


def _dpo_sentence(phase: Phase) -> str:
    changes = [_last(phase, name) for name in UNTRAINED_NATURAL]
    gains = [_last(phase, name, "argmax_logprob_mean") for name in UNTRAINED_NATURAL]
    fell = sum(change < -LEVEL_NATS for change in changes)
    index = phase.signal("squeeze_nats")[-1] or 0.0
    return (
        f"DPO moved the rejected answers by {_last(phase, 'rejected'):+.2f} nats per token and, "
        f"of {len(changes)} kinds of answers that it never trained on, {fell} fell "
        f"({sum(changes) / len(changes):+.2f} on average) while the likeliest tokens in their "
        f"place moved by {sum(gains) / len(gains):+.2f}: a squeeze index of {index:+.2f}. "
        f"{_chosen_course(phase)}"
    )


def _chosen_course(phase: Phase) -> str:
    changes = [change or 0.0 for change in phase.changes("logprob_mean", "chosen")]
    peak = max(range(len(changes)), key=changes.__getitem__)
    course = f"The chosen answers ended at {changes[-1]:+.2f}"
    if changes[-1] >= changes[peak] - LEVEL_NATS:
        return f"{course}."
    return f"{course}, after a best of {changes[peak]:+.2f} at step {phase.steps[peak]}."
