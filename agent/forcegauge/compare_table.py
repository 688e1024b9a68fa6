"""What runs are compared by, and the outcome of each: for a terminal and for a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from forcegauge.compare import CALM, SICK, Comparison, Entry, untrained_argmax
from forcegauge.reporting.plots import written
from forcegauge.reporting.safe import plain
from forcegauge.reporting.story import Phase, Value

STYLES = {"squeezing": "bold yellow", "diverging": "bold red", "collapsed": "bold magenta"}


@dataclass(frozen=True)
class Measure:
    """One number per probe that runs are compared by; with a ``head`` it is a column of tables."""

    key: str
    title: str
    reading: str
    points: Callable[[Phase], list[Value]]
    head: str = ""
    limit: tuple[str, str] = ("", "")
    """The alarm that reads it and its signal."""

    @property
    def percent(self) -> bool:
        """Whether it is a share."""
        return self.key.endswith("_ratio")


def _signal(name: str) -> Callable[[Phase], list[Value]]:
    return lambda phase: phase.signal(name)


def _change(kind: str) -> Callable[[Phase], list[Value]]:
    return lambda phase: phase.changes("logprob_mean", kind)


MEASURES = (
    Measure(
        "squeeze_nats",
        "Squeeze index",
        "How much more the argmax gained than the answers themselves, where nobody pulled either "
        "up. Rising: the mass goes to the likeliest tokens.",
        _signal("squeeze_nats"),
        "squeeze",
    ),
    Measure(
        "squeezed_ratio",
        "Squeezed ratio",
        "Share of untrained answers that fell while the argmax along them rose.",
        _signal("squeezed_ratio"),
        "squeezed",
    ),
    Measure(
        "chosen_change_nats",
        "Chosen answers",
        "Change of their log-prob since the phase began, per token.",
        _change("chosen"),
        "chosen",
    ),
    Measure(
        "other_prompt_change_nats",
        "Answers to other training prompts",
        "Change of their log-prob. Up: answers to the wrong questions. Far down: squeezing.",
        _change("other_prompt"),
        "other prompts",
    ),
    Measure(
        "untrained_argmax_change_nats",
        "Argmax in untrained contexts",
        "Change of the likeliest token’s log-prob along answers that nobody trains on.",
        untrained_argmax,
        "argmax",
    ),
    Measure(
        "hallucination_pressure_nats",
        "Hallucination pressure",
        "Change of answers to other training prompts beyond that of answers to prompts never "
        "trained on.",
        _signal("hallucination_pressure_nats"),
        "pressure",
        ("hallucination_pressure", "hallucination_pressure_nats"),
    ),
    Measure(
        "squeeze_excess_nats",
        "Squeeze beyond sharpening",
        "The squeeze index less what a mere sharpening explains; the squeezing alarm reads it.",
        _signal("squeeze_excess_nats"),
        limit=("squeezing", "squeeze_excess_nats"),
    ),
    Measure(
        "rejected_change_nats",
        "Rejected answers",
        "Change of their log-prob since the phase began, per token.",
        _change("rejected"),
    ),
    Measure(
        "preference_margin_nats",
        "Preference margin",
        "Chosen minus rejected, per token. It may grow in a run that is being ruined.",
        _signal("preference_margin_nats"),
    ),
    Measure(
        "greedy_repetition_ratio",
        "Repetition of greedy outputs",
        "Share of repeated n-grams in what the model writes freely.",
        _signal("greedy_repetition_ratio"),
        limit=("repeater", "greedy_repetition_ratio"),
    ),
)
COLUMNS = tuple(measure for measure in MEASURES if measure.head)


def outcome(entry: Entry, measure: Measure) -> Value:
    """A measure at the run's last probe; None where it is absent or cannot be compared."""
    return measure.points(entry.phase)[-1] if entry.comparable else None


def said(comparison: Comparison) -> Iterator[str]:
    """Which runs are sick and which are not, in sentences."""
    groups = by_verdict(comparison.entries).items()
    first = "; ".join(f"{verdict}: {', '.join(map(_since, found))}" for verdict, found in groups)
    yield f"{first[:1].upper()}{first[1:]}."
    for entry in comparison.entries:
        names = ", ".join(alarm.name for alarm in entry.alarms_on)
        if entry.calm and names:
            yield f"{entry.name} is {entry.verdict}, but an alarm is on: {names}."
        past = entry.squeezed_before
        if past is not None:
            until = "" if past.off is None else f" to {past.off - entry.start}"
            yield f"{entry.name} was squeezing from step {past.on - entry.start}{until}."
    yield from _extremes(comparison)


def by_verdict(entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
    """Runs by what was said of them last, the sickest first."""
    words = dict.fromkeys((*SICK, *CALM, *(entry.verdict for entry in entries)))
    found = {word: [entry for entry in entries if entry.verdict == word] for word in words}
    return {word: rows for word, rows in found.items() if rows}


def _since(entry: Entry) -> str:
    told = entry.verdict in SICK and entry.since is not None
    return f"{entry.name} (since step {entry.since:g})" if told else entry.name


def _extremes(comparison: Comparison) -> Iterator[str]:
    squeeze = MEASURES[0]
    found = [(outcome(entry, squeeze), entry.name) for entry in comparison.entries]
    known = sorted((value, name) for value, name in found if value is not None)
    if len(known) > 1:
        (low, least), (high, most) = known[0], known[-1]
        yield (
            f"Squeezed most: {most} ({written(high, signed=True)} nats); "
            f"least: {least} ({written(low, signed=True)} nats)."
        )


def heads(comparison: Comparison) -> tuple[str, ...]:
    """The columns of the table of outcomes."""
    return ("run", "verdict", "since", *comparison.swept, *(m.head for m in COLUMNS), "probed to")


def cells(comparison: Comparison, entry: Entry) -> tuple[str, ...]:
    """The row of one run, in the order of `heads`."""
    since = entry.since if entry.verdict in SICK else None
    numbers = (
        written(outcome(entry, each), each.percent, signed=not each.percent) for each in COLUMNS
    )
    return (
        entry.name,
        entry.verdict,
        "–" if since is None else f"{since:g}",
        *(entry.settings[name] for name in comparison.swept),
        *numbers,
        f"{entry.phase.steps[-1] - entry.start}",
    )


def rich_tables(comparison: Comparison, width: int) -> list[Table]:
    """The outcomes for a terminal: one table, or two where it is too narrow for one."""
    names = heads(comparison)
    if len(plain_table(comparison).splitlines()[0]) <= width:
        return [_rich(comparison, range(len(names)))]
    numbers = [names.index(measure.head) for measure in COLUMNS]
    others = [place for place in range(len(names)) if place not in numbers]
    return [_rich(comparison, others), _rich(comparison, [0, *numbers])]


def _rich(comparison: Comparison, places: Iterable[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    shown = list(places)
    for place in shown:
        head = plain(heads(comparison)[place])
        table.add_column(head, justify="left" if head in ("run", "verdict") else "right")
    for entry in comparison.entries:
        texts = [plain(text) for text in cells(comparison, entry)]
        style = STYLES.get(entry.verdict, "")
        row = (
            Text(texts[place], style if texts[place] == entry.verdict else "") for place in shown
        )
        table.add_row(*row)
    return table


def plain_table(comparison: Comparison) -> str:
    """The outcomes for a file or a pipe: aligned, never cut."""
    return aligned([heads(comparison), *map(partial(cells, comparison), comparison.entries)])


def settings_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Settings that differ, one per row, and a column per run."""
    if not comparison.differing:
        return []
    rows = [
        (name, *(entry.settings.get(name, "–") for entry in comparison.entries))
        for name in comparison.differing
    ]
    return [("differs", *(entry.name for entry in comparison.entries)), *rows]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts in columns of equal width."""
    shown = [[plain(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in shown)
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data; what is not defined or cannot be compared is absent."""
    return {
        "phase": comparison.phase,
        "by": comparison.by,
        "differing": list(comparison.differing),
        "notes": list(comparison.notes),
        "runs": [_run_json(comparison, entry) for entry in comparison.entries],
    }


def _run_json(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    found = {each.key: outcome(entry, each) for each in MEASURES}
    values = {name: value for name, value in found.items() if value is not None}
    facts = {
        "run": entry.name,
        "directory": str(entry.folder),
        "phase": entry.phase.name,
        "verdict": entry.verdict,
        "since_step": entry.since,
        "steps": entry.phase.steps[-1] - entry.start,
        "comparable": entry.comparable,
        "settings": {n: entry.settings[n] for n in comparison.differing if n in entry.settings},
    }
    return {**facts, **values}
