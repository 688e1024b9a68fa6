"""A view as lines of a terminal: 80 columns and 24 rows are enough, more show more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.text import Text

from forcegauge.alarms import ALARMS, VERDICTS
from forcegauge.detectors import AlarmState
from forcegauge.reporting.safe import plain
from forcegauge.reporting.story import Value
from forcegauge.watching.view import Series, View

RAMP = "▁▂▃▄▅▆▇"
"""Not up to the full block: courses one above the other would run into each other."""
LEAST_NATS = 0.5
"""A course that moves less than this is drawn as if it moved this much: noise looks flat."""

STYLES = {
    "warming": "bold",
    "learning": "bold green",
    "squeezing": "bold red",
    "diverging": "bold red",
    "collapsed": "bold red",
}
CALM = ("warming", "learning")
GLYPHS = dict(zip(VERDICTS, "◔✓▼⇊✕", strict=True))

FIGURES = (
    ("untrained_change_nats", "untrained answers"),
    ("argmax_gain_nats", "argmax there"),
    ("squeeze_nats", "squeeze index"),
    ("hallucination_pressure_nats", "halluc. pressure"),
    ("force_up_norm", "force up"),
    ("force_down_norm", "force down"),
)
FORCES = ("force up", "force down")
SMALL = 0.01
"""A force below it is written with its power of ten."""
"""Signal and its name, in pairs that stand side by side."""

NAME, VALUE = 18, 6
TALL = 34
"""Rows from which on every alarm has a line of its own."""
STALE = 5
"""Times the usual pause between probes after which silence is worth a word."""
QUIET_SECONDS = 60.0

READ = {row.name: row.conditions[0] for row in ALARMS}


def screen(view: View, width: int, height: int, now: float | None = None) -> Group:
    """The view in at most ``height`` lines; ``now`` is the time, in Unix seconds."""
    now = time.time() if now is None else now
    top = [*_head(view, width, now), *_verdict(view, width)]
    figures = list(_figures(view, width))
    alarms = _alarm_rows(view, width) if height >= TALL else _alarm_words(view, width)
    below = [*figures, *alarms, *_cost(view, width), *_notes(view, width)]
    # where it is too much, response types go first: the verdict and what it reads stay
    room = max(0, height - len(top) - len(below))
    lines = [*top, *list(_types(view, width))[:room], *below][:height]
    for line in lines:
        line.truncate(width)
    return Group(*lines)


def _head(view: View, width: int, now: float) -> Iterator[Text]:
    parts = [view.name, view.phase and f"phase {view.phase}", view.model.rsplit("/", 1)[-1]]
    left = " · ".join(plain(part) for part in parts if part)
    yield _ends(Text(left, "bold"), Text(_where(view)), width)
    verdict = plain(view.verdict) or "nothing probed yet"
    since = "" if view.since is None else f" since step {view.since:,}"
    style = STYLES.get(view.verdict, "bold")
    said = Text.assemble((f"{GLYPHS.get(view.verdict, ' ')} {verdict.upper()}", style), since)
    if view.verdict in CALM and any(each.on for each in view.alarms):
        said.append(", but an alarm is on", "bold red")
    yield _ends(said, Text(_pulse(view, now)), width)


def _where(view: View) -> str:
    count = "" if view.count is None else f" · {view.count:,} probes"
    steps = [step for step in (view.train_step, view.step) if step is not None]
    return f"step {steps[0]:,}{count}" if steps else ""


def _pulse(view: View, now: float) -> str:
    """Whether the run still writes."""
    if view.ended is not None:
        return f"ended: {plain(view.ended)}"
    if view.heard is None:
        return ""
    silent = now - view.heard
    late = silent > max(QUIET_SECONDS, STALE * (view.spacing or 0.0))
    return f"silent for {_ago(silent)}: stopped?" if late else f"last probe {_ago(silent)} ago"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _verdict(view: View, width: int) -> Iterator[Text]:
    late = "For the next run: " if view.ended is not None and view.verdict not in CALM else ""
    for mark, text, style in (
        ("  ", view.evidence.removeprefix(f"Since step {view.since}: "), ""),
        ("→ ", view.advice and f"{late}{view.advice}", "bold"),
        ("→ ", view.checkpoint, ""),
    ):
        if text:
            yield from _wrapped(mark, text, width, style)


def _wrapped(mark: str, text: str, width: int, style: str = "") -> list[Text]:
    rows = Text(plain(text), style).wrap(_PAPER, max(1, width - len(mark)))
    marks = [mark, *("  " for _ in rows[1:])]
    return [Text.assemble(first, row) for first, row in zip(marks, rows, strict=True)]


_PAPER = Console(width=80, color_system=None)
"""Text is only wrapped on it."""


def _types(view: View, width: int) -> Iterator[Text]:
    if not view.changes:
        return
    steps = next(iter(view.changes.values())).steps
    span = f"steps {steps[0]:,} to {steps[-1]:,}"
    yield Text(f"Log-prob since the baseline, nats per token, own scales, {span}", "underline")
    cells = [(plain(name), series) for name, series in view.changes.items()]
    half = -(-len(cells) // 2)
    yield from _pairs(cells[:half], cells[half:], width)


def _figures(view: View, width: int) -> Iterator[Text]:
    cells = [(name, view.signals[signal]) for signal, name in FIGURES if signal in view.signals]
    if cells:
        yield Text("Where the mass goes; untrained: what nobody trains on", "underline")
        yield from _pairs(cells[::2], cells[1::2], width)


Cell = tuple[str, Series]


def _pairs(left: Sequence[Cell], right: Sequence[Cell], width: int) -> Iterator[Text]:
    room = (width - 3) // 2
    for number, cell in enumerate(left):
        other = _cell(*right[number], room) if number < len(right) else Text()
        yield Text.assemble(_cell(*cell, room), "   ", other)


def _cell(name: str, series: Series, room: int) -> Text:
    force, last = name in FORCES, series.last
    value = "" if last is None else f"{last:+.2f}"
    if force and last is not None:
        value = f"{last:.0e}" if 0 < last < SMALL else f"{last:.2f}"
    least = 0.0 if force else LEAST_NATS
    drawn = spark(series, max(1, room - NAME - VALUE - 2), least)
    return Text.assemble(f"{set_cell_size(name, NAME)}{value:>{VALUE}} ", (drawn, "cyan"), " ")


def spark(series: Series, width: int, least: float = LEAST_NATS) -> str:
    """The course over the steps; the scale has 0 on it and spans ``least`` at least."""
    known = [pair for pair in zip(series.steps, series.values, strict=True) if pair[1] is not None]
    if not known:
        return " " * width
    low, high = _scale([value for _, value in known if value is not None], least)
    first, last = series.steps[0], series.steps[-1]
    columns, place = [], 0
    value: Value = None
    for column in range(width):
        edge = first + (last - first) * (column + 1) / width
        while place < len(known) and known[place][0] <= edge:
            value, place = known[place][1], place + 1
        columns.append(" " if value is None else _level(value, low, high))
    return "".join(columns)


def _scale(values: Sequence[float], least: float) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    short = max(0.0, least - (high - low)) / 2
    return low - short, high + short


def _level(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.0
    return RAMP[min(len(RAMP) - 1, int(share * len(RAMP)))]


def _alarm_words(view: View, width: int) -> Iterator[Text]:
    """Alarms that are on or building, in a line or two."""
    on = [f"{each.name} ({each.streak} probes)" for each in view.alarms if each.on]
    rest = [each for each in view.alarms if not each.on]
    near = [f"{e.name} {e.streak} of {e.needed}" for e in rest if e.streak]
    quiet = sum(not each.streak for each in rest)
    parts = [", ".join(on) or "none", f"building: {', '.join(near)}" if near else ""]
    parts.append(f"{quiet} quiet" if quiet else "")
    if view.alarms:
        text = f"Alarms on: {' · '.join(part for part in parts if part)}"
        yield from _wrapped("", text, width, "bold red" if on else "")


def _alarm_rows(view: View, width: int) -> Iterator[Text]:
    """Every alarm with its size, those that are on first."""
    if view.alarms:
        yield Text("Alarms", "underline")
    for state in sorted(view.alarms, key=lambda each: (not each.on, -each.streak)):
        row = f"{set_cell_size(plain(state.name), 24)}{_streak(state):<28}{_size(state)}"
        yield Text(row, "bold red" if state.on else "" if state.streak else "dim", no_wrap=True)


def _streak(state: AlarmState) -> str:
    if not state.streak:
        return "quiet"
    if not state.on:
        return f"building, {state.streak} of {state.needed} probes"
    return f"ON, {state.streak} probes running"


def _size(state: AlarmState) -> str:
    read = READ.get(state.name)
    percent, below = read and read.signal.endswith("_ratio"), read and not read.above
    form = ".0%" if percent else "+.2f"
    value = "-" if state.value is None else f"{state.value:{form}}"
    return f"{value:>8}   alarm {'below' if below else 'above'} {state.threshold:{form}}"


def _cost(view: View, width: int) -> Iterator[Text]:
    parts = []
    if view.seconds is not None:
        share = "" if view.overhead is None else f", {view.overhead:.1%} of the time"
        now, whole = view.scored or (0, 0)
        part = f" ({now} of {whole} in turn)" if now < whole else ""
        parts.append(f"A probe takes {view.seconds:.1f} s{part}{share}")
    if view.next_step is not None and view.step is not None and view.ended is None:
        ahead = max(0, view.next_step - (view.train_step or view.step))
        parts.append(f"next at about step {view.next_step:,}, in {ahead:,} steps")
    if parts:
        yield from _wrapped("", " · ".join(parts), width)


def _notes(view: View, width: int) -> Iterator[Text]:
    for note in view.notes:
        yield from _wrapped("! ", note, width, "yellow")


def _ends(left: Text, right: Text, width: int) -> Text:
    """One text at the left end of a line, the other at the right; the left one is cut."""
    room = max(1, width - right.cell_len - 1)
    left = left.copy()
    left.truncate(room, overflow="ellipsis")
    return Text.assemble(left, " " * max(1, width - left.cell_len - right.cell_len), right)
