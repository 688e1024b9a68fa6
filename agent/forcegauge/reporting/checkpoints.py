"""Which checkpoint to go back to, in a sentence for the report and the demo."""

from __future__ import annotations

from forcegauge.record import Line
from forcegauge.reporting.story import Alarm, Story, field, number


def last_healthy(story: Story) -> Line | None:
    """The latest checkpoint line without an alarm, on or building up to one that went on."""
    healthy = [line for line in story.checkpoints if line.get("healthy")]
    clear = (row for row in reversed(healthy) if not any(_built(a, row) for a in story.alarms))
    return next(clear, None)


def checkpoint_words(story: Story) -> str:
    """Which checkpoint is the last healthy one; empty where the record knows of none at all."""
    if not story.checkpoints:
        return ""
    line = last_healthy(story)
    if line is None:
        return "No checkpoint is healthy: an alarm was on or about to be when each was saved."
    return f"The last healthy checkpoint is {line.get('path')}, of step {line['step']}."


def _built(alarm: Alarm, checkpoint: Line) -> bool:
    """An alarm needs a streak: what was saved while that was counted is sick already."""
    began = number(field(alarm.line, "since_step"))
    return began is not None and began <= checkpoint["step"] < alarm.on
