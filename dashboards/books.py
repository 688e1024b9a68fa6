"""The runbooks: hand-written pages, each with a block from the tables that says when it fires."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forcegauge.alarms import NOISE_MULTIPLE, QUIET_PROBES, UNKNOWN_PUSH_FACTOR, Alarm, alarm
from forcegauge_monitor.alert import Alert
from forcegauge_monitor.alerts import ALERTS

START, END = "<!-- conditions -->\n", "<!-- /conditions -->\n"

WORDS = {
    "squeeze_excess_nats": "what the argmax gained over answers that nobody trains on, beyond a "
    "mere sharpening of all distributions",
    "squeezed_probes_ratio": "share of the probes for which at least half of these answers fell "
    "while the argmax along them rose",
    "unearned_fall_nats": "what these answers lost, less what the chosen ones gained",
    "joint_fall_nats": "what chosen and untrained answers have both lost, where both fell from "
    "the phase's first fall on",
    "untrained_change_nats": "change of the answers that nobody trains on",
    "nonfinite_ratio": "share of the responses whose score is not finite",
    "loss_nonfinite_ratio": "1 where the training's loss is not finite",
    "pushed_mass_change_ratio": "change of the argmax mass along rejected and untrained answers",
    "hallucination_pressure_nats": "change of answers to other training prompts less the change "
    "of answers to prompts that nobody trains on",
    "other_prompt_change_nats": "change of answers to other training prompts",
    "displacement_nats": "what the chosen answers lost while the margin grew",
    "valley_force_ratio": "share of the push down that falls on tokens below 1 %",
    "squeeze_law_ratio": "the part of the push down that feeds nothing but the argmax",
    "entropy_left_ratio": "entropy as a share of what it was at the phase's start",
    "entropy_change_nats": "change of the entropy along rejected and untrained answers",
    "greedy_repetition_ratio": "share of repeated four-token sequences in greedy outputs",
    "greedy_repetition_change_ratio": "what that share gained since the phase's start",
    "eos_change_nats": "change of the end-of-sequence token's log-prob after chosen answers",
}
"""What a condition's signal is, for who has not read of it."""


def pages(folder: Path, shipped: Path) -> Iterator[tuple[Path, str]]:
    """Each alert's page in ``folder``, and its copy in ``shipped`` that the monitor serves."""
    for row in ALERTS:
        name = f"{row.name}.md"
        written = (folder / name).read_text(encoding="utf-8")
        before, _, rest = written.partition(START)
        text = before + _block(row) + rest.partition(END)[2]
        yield folder / name, text
        yield shipped / name, text


def _block(row: Alert) -> str:
    parts = [f"**It fires** (severity {row.severity}): {row.when}"]
    if row.alarm:
        parts.append(_signals(alarm(row.alarm)))
    parts.append(" ".join(_timing(row)))
    return "\n\n".join([START.strip(), *filter(None, parts), END])


def _signals(row: Alarm) -> str:
    signals = dict.fromkeys(each.signal for each in (*row.conditions, *row.or_else))
    return "\n".join(f"- `{signal}`: {WORDS[signal]}" for signal in signals)


def _timing(row: Alert) -> Iterator[str]:
    if row.alarm:
        yield f"A size in nats is never under {NOISE_MULTIPLE:g} times the noise of its signal."
        if alarm(row.alarm).needs_push:
            yield (
                "Where nobody knows whether the loss pushes down, sizes in nats are "
                f"{UNKNOWN_PUSH_FACTOR:g} times as large."
            )
        yield f"It is over after {QUIET_PROBES} quiet probes."
    if row.keep:
        yield f"The alert stays on for {row.keep} after that, and after the end of the run."
