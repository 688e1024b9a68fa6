"""When what happened: phases, verdicts and alarms over one step axis, without a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

from forcegauge.alarms import ALARMS
from forcegauge.reporting.headline import GLYPHS
from forcegauge.reporting.plots import written
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import Alarm, Phase, Story, field, number

MEANINGS = {alarm.name: alarm.meaning for alarm in ALARMS}
READ_SIGNALS = {alarm.name: alarm.conditions[0].signal for alarm in ALARMS}
TICKS = 5
LONGEST_LIST = 30


@dataclass(frozen=True)
class Scale:
    """Steps to percent of the width."""

    low: int
    high: int

    @classmethod
    def of(cls, story: Story) -> Scale:
        """The scale over all probes of a run."""
        steps = [step for phase in story.phases for step in phase.steps]
        return cls(min(steps), max(steps))

    def at(self, step: float) -> float:
        """Percent from the left, within 0 and 100."""
        share = (step - self.low) / ((self.high - self.low) or 1)
        return min(100.0, max(0.0, 100 * share))

    def bar(self, start: float, end: float, style: str, text: str) -> str:
        """A bar from one step to another; ``text`` is HTML."""
        left, right = self.at(start), self.at(end)
        return (
            f'<span class="bar {style}" style="left:min({left:.2f}%, 100% - 25px);'
            f'width:{right - left:.2f}%">'
            f"{text}</span>"
        )

    def ticks(self) -> str:
        """Step numbers under the lanes."""
        steps = [self.low, *self._round_steps(), self.high]
        marks = "".join(f'<span style="left:{self.at(s):.2f}%">{s}</span>' for s in steps)
        return f'<div class="lane ticks"><span class="what">step</span><div>{marks}</div></div>'

    def _round_steps(self) -> list[int]:
        """Round steps well inside the ends."""
        span = self.high - self.low
        sizes = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
        stride = next((size for size in sizes if span / size <= TICKS), 1)
        inside = range(-(-self.low // stride) * stride, self.high, stride)
        near = 0.08 * span
        return [step for step in inside if self.low + near < step < self.high - near]


def timeline(story: Story) -> str:
    """Phases, verdicts and alarms on one step axis, and what each alarm said."""
    if not story.has_course:
        return ""
    scale = Scale.of(story)
    lanes = {"phase": _phase_bars(story, scale), "verdict": _verdict_bars(story, scale)}
    for name in dict.fromkeys(alarm.name for alarm in story.alarms):
        lanes[name] = _alarm_bars(story, name, scale)
    drawn = "".join(
        f'<div class="lane"><span class="what">{inline(name)}</span><div>{bars}</div></div>'
        for name, bars in lanes.items()
    )
    return (
        '<section class="card"><h2>When it happened</h2>'
        f'<div class="timeline">{drawn}{scale.ticks()}</div>{_alarm_list(story)}</section>'
    )


def _phase_bars(story: Story, scale: Scale) -> str:
    return "".join(
        scale.bar(p.steps[0], p.steps[-1], f"phase-{i % 2}", inline(p.name))
        for i, p in enumerate(story.phases)
    )


def _verdict_bars(story: Story, scale: Scale) -> str:
    return "".join(verdict_bars(phase, scale) for phase in story.phases)


def verdict_bars(phase: Phase, scale: Scale, offset: int = 0) -> str:
    """The verdicts of a phase as bars; ``offset`` is taken off its steps."""
    return "".join(
        scale.bar(start - offset, end - offset, f"v-{known}", f"{GLYPHS[known]} {inline(verdict)}")
        for start, end, verdict in _verdict_spans(phase)
        for known in [verdict if verdict in GLYPHS else "warming"]
    )


def _verdict_spans(phase: Phase) -> Iterator[tuple[int, int, str]]:
    """A verdict holds from its first probe to the probe with the next one."""
    said = [(probe["step"], str(field(probe, "verdict") or "")) for probe in phase.probes]
    runs = [(verdict, next(rows)[0]) for verdict, rows in groupby(said, key=lambda row: row[1])]
    ends = [start for _, start in runs[1:]] + [phase.steps[-1]]
    for (verdict, start), end in zip(runs, ends, strict=True):
        if verdict:
            yield start, end, verdict


def _alarm_bars(story: Story, name: str, scale: Scale) -> str:
    return "".join(
        _building(alarm, scale)
        + scale.bar(alarm.on, _end(story, alarm), "alarm", f"<b>{count}</b>")
        for count, alarm in enumerate(story.alarms, start=1)
        if alarm.name == name
    )


def _building(alarm: Alarm, scale: Scale) -> str:
    """The probes that held before the streak was long enough, hatched."""
    since = number(field(alarm.line, "since_step"))
    return "" if since is None or since >= alarm.on else scale.bar(since, alarm.on, "building", "")


def _end(story: Story, alarm: Alarm) -> int:
    """An alarm that never went off lasts to the end of its phase: a new one counts anew."""
    if alarm.off is not None:
        return alarm.off
    ends = [phase.steps[-1] for phase in story.phases if phase.name == alarm.phase]
    return max([alarm.on, *ends])


def _alarm_list(story: Story) -> str:
    if not story.alarms:
        return '<p class="quiet">No alarm was on at any probe.</p>'
    rows = [_alarm_row(story, alarm) for alarm in story.alarms[:LONGEST_LIST]]
    more = len(story.alarms) - len(rows)
    note = f'<p class="quiet">and {more} more; the record holds all.</p>' if more else ""
    return f'<ol class="alarms">{"".join(rows)}</ol>{note}'


def _alarm_row(story: Story, alarm: Alarm) -> str:
    since = field(alarm.line, "since_step")
    began = "" if since is None else f"held since step {shown(since)}, "
    running = alarm.phase == story.phases[-1].name
    ended = "still on" if running else "on to the end of its phase"
    until = ended if alarm.off is None else f"off at step {alarm.off}"
    return (
        f"<li><b>{inline(alarm.name)}</b> <span>{began}on at step {alarm.on}, {until}"
        f"{_size(alarm)}</span><p>{escape(MEANINGS.get(alarm.name, ''))}</p></li>"
    )


def _size(alarm: Alarm) -> str:
    value, threshold = (number(field(alarm.line, name)) for name in ("value", "threshold"))
    if value is None or threshold is None:
        return ""
    percent = READ_SIGNALS.get(alarm.name, "").endswith("_ratio")
    signs = {"percent": percent, "signed": not percent}
    return f": {written(value, **signs)} when it went on, limit {written(threshold, **signs)}"
