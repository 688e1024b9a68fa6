"""Which checkpoint to go back to, in a sentence for the report and the demo."""

from __future__ import annotations

import math

from forcegauge.record import Line
from forcegauge.reporting.story import Alarm, Story, field, number


def last_healthy(story: Story) -> Line | None:
    """The latest checkpoint line without an alarm, on or building up to one that went on."""
    healthy = [line for line in story.checkpoints if line.get("healthy")]
    clear = (row for row in reversed(healthy) if not any(_built(a, row) for a in story.alarms))
    return next(clear, None)


def checkpoint_words(story: Story) -> str:
    """Which checkpoint is the last healthy one; empty where the record knows of none at all.

    Where none is, the one with the fewest alarms is named with them (of equals, the one where most
    were only building up, then the latest): an SFT that pulls up other answers is no reason to
    throw it away.
    """
    if not story.checkpoints:
        return ""
    line = last_healthy(story)
    if line is not None:
        return f"The last healthy checkpoint is {line.get('path')}, of step {line['step']}."
    least = min(reversed(story.checkpoints), key=lambda row: _severity(story, row))
    names = " and ".join(alarms_at(story, least)) or "an alarm"
    return (
        "No checkpoint is free of alarms. The one with the fewest is "
        f"{least.get('path')}, of step {least['step']}, with {names}."
    )


def _built(alarm: Alarm, checkpoint: Line) -> bool:
    """An alarm needs a streak: what was saved while that was counted is sick already."""
    step: int = checkpoint["step"]
    return _began(alarm) <= step < alarm.on


def alarms_at(story: Story, checkpoint: Line) -> list[str]:
    """Names of the alarms that were on, or building up, when a checkpoint was saved."""
    return [alarm.name for alarm in _present(story, checkpoint)]


def _severity(story: Story, checkpoint: Line) -> tuple[int, int]:
    present = _present(story, checkpoint)
    return len(present), sum(alarm.on <= checkpoint["step"] for alarm in present)


def _present(story: Story, checkpoint: Line) -> list[Alarm]:
    step, phase = checkpoint["step"], checkpoint["phase"]
    mine = [alarm for alarm in story.alarms if alarm.phase == phase]
    return [alarm for alarm in mine if _began(alarm) <= step < _ended(alarm)]


def _began(alarm: Alarm) -> float:
    began = number(field(alarm.line, "since_step"))
    return math.inf if began is None else began


def _ended(alarm: Alarm) -> float:
    return math.inf if alarm.off is None else alarm.off
