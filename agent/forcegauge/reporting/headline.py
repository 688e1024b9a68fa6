"""The first screen: is the run sick, since which step, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from forcegauge.alarms import ALARMS
from forcegauge.reporting.checkpoints import checkpoint_words
from forcegauge.reporting.figures import limit_of
from forcegauge.reporting.plots import written
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import Alarm, Phase, Story, Value, field

GLYPHS = {
    "warming": "◔",
    "learning": "✓",
    "squeezing": "▼",
    "diverging": "⇊",
    "collapsed": "✕",
}
CALM = {
    "warming": "Too few probes since the baseline to say anything.",
    "learning": "Nothing squeezes, diverges or collapses.",
}
MEANINGS = {
    "collapsed": "The model has lost most of what it could say.",
    **{row.name: row.meaning for row in ALARMS},
    **CALM,
}

ADVICE = {row.name: row.advice for row in ALARMS}

TILES = (
    ("squeeze_excess_nats", "squeeze beyond sharpening", "squeezing"),
    ("squeezed_probes_ratio", "probes squeezed", "squeezing"),
    ("chosen_change_nats", "chosen answers", ""),
    ("untrained_change_nats", "untrained answers", ""),
    ("hallucination_pressure_nats", "hallucination pressure", "hallucination_pressure"),
    ("preference_margin_nats", "preference margin", ""),
)
"""Signal, its name for people, the alarm that reads it. Latest value, with its course."""

SPARK_WIDTH, SPARK_HEIGHT = 120.0, 32.0
SPARK_POINTS = 80


def headline(story: Story) -> str:
    """The verdict in a sentence, its evidence and the advice."""
    verdict = story.verdict
    if verdict is None:
        return _nothing_yet(story)
    known = verdict if verdict in GLYPHS else "warming"
    since = field(story.verdict_line, "since_step")
    when = "" if since is None else f' <span class="since">since step {shown(since)}</span>'
    advice = _advice(story)
    return (
        f'<section class="verdict v-{known}"><div><p class="eyebrow">The verdict so far</p>'
        f'<h1><span class="glyph" aria-hidden="true">{GLYPHS[known]}</span> '
        f"{inline(verdict.capitalize())}{when}</h1>"
        f'<p class="meaning">{escape(MEANINGS.get(verdict, ""))}</p>{_evidence(story)}</div>'
        + (f'<div class="advice"><h2>What to do</h2>{advice}</div>' if advice else "")
        + "</section>"
    )


def _alarms_beside(story: Story) -> list[Alarm]:
    """Alarms that are on while the verdict is calm: it must not sound like all is well."""
    return story.alarms_on if story.verdict in CALM else []


def _evidence(story: Story) -> str:
    """What the verdict was noticed by; a calm one's would be old, the tiles have the latest."""
    if story.verdict in CALM:
        return "".join(
            f'<p class="on"><b>But an alarm is on: {inline(alarm.name)}{_held(alarm)}.</b> '
            f"{escape(MEANINGS.get(alarm.name, ''))}</p>"
            for alarm in _alarms_beside(story)
        )
    line = story.verdict_line or {}
    if not line.get("evidence"):
        return ""
    return f'<p class="evidence">Noticed at step {line["step"]}. {inline(line["evidence"])}</p>'


def _held(alarm: Alarm) -> str:
    since = field(alarm.line, "since_step")
    return "" if since is None else f", since step {shown(since)}"


def _advice(story: Story) -> str:
    given = [ADVICE[alarm.name] for alarm in _alarms_beside(story) if alarm.name in ADVICE]
    said = field(story.verdict_line, "advice")
    told = [*(given or [said]), checkpoint_words(story)]
    return "".join(f"<p>{inline(text)}</p>" for text in told if text)


def _nothing_yet(story: Story) -> str:
    failed = len(story.errors)
    hint = f"{failed} probes failed: see Run facts." if failed else "Look again after a few steps."
    return (
        '<section class="verdict v-warming"><div><p class="eyebrow">The verdict so far</p>'
        '<h1><span class="glyph" aria-hidden="true">◔</span> Nothing has been probed yet</h1>'
        f'<p class="meaning">The run is in the record, but no probe of it is. {hint}</p>'
        "</div></section>"
    )


def standing(story: Story) -> str:
    """Where the run stands, in a line: last step, number of probes, how it ended."""
    count = sum(len(phase.probes) for phase in story.phases)
    last = story.last_probe
    where = "" if last is None else f"step {last['step']} · "
    probes = f"{count} {'probe' if count == 1 else 'probes'}"
    if story.end is None:
        ending = "no end in the record: still running, or cut off"
    else:
        ending = f"ended: {shown(story.end.get('reason'))}"
    return f"{where}{probes} · {ending}"


def tiles(story: Story) -> str:
    """The latest value of the main signals, each with its course over the run."""
    made = (_tile(story, *row) for row in TILES)
    return f'<ul class="tiles">{"".join(made)}</ul>' if story.phases else ""


def _tile(story: Story, signal: str, name: str, alarm: str) -> str:
    value = story.phases[-1].signal(signal)[-1]
    if value is None:
        return ""
    percent = signal.endswith("_ratio")
    on = alarm in {each.name for each in story.alarms_on}
    unit = "" if percent else " <small>nats</small>"
    limit = limit_of(story, alarm, signal)
    return (
        f'<li class="tile{" over" if on else ""}"><span class="name">{name}</span>'
        f'<span class="value">{written(value, percent, signed=not percent)}{unit}</span>'
        f"{_spark(story.phases, signal) if story.has_course else ''}"
        f'<span class="note">{_limit_note(value, limit, percent, on)}</span></li>'
    )


def _limit_note(value: float, limit: Value, percent: bool, on: bool) -> str:
    if limit is None:
        return "&nbsp;"
    size = f"{limit:.0%}" if percent else f"{limit:g}"
    if on:
        return "▲ the alarm is on"
    # an alarm has other conditions and a streak: a value over its limit alone must not alarm people
    return f"over {size}, yet no alarm" if value > limit else f"alarm above {size}"


def _spark(phases: Sequence[Phase], signal: str) -> str:
    rows = [
        [
            (step, value)
            for step, value in zip(p.steps, p.signal(signal), strict=True)
            if value is not None
        ]
        for p in (phase.thinned(SPARK_POINTS) for phase in phases)
    ]
    points = [point for row in rows for point in row]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))

    def place(x: float, y: float) -> str:
        across = (x - left) / ((right - left) or 1) * SPARK_WIDTH
        down = (high - y) / ((high - low) or 1) * SPARK_HEIGHT
        return f"{across:.1f} {down:.1f}"

    paths = "".join(
        f'<path d="M{"L".join(place(*point) for point in row)}"/>' for row in rows if row
    )
    zero = place(left, 0.0).split()[1]
    return (
        f'<svg class="spark" viewBox="-2 -2 {SPARK_WIDTH + 4:g} {SPARK_HEIGHT + 4:g}" '
        'preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="zero" d="M0 {zero}H{SPARK_WIDTH:g}"/>'
        f"{paths}</svg>"
    )
