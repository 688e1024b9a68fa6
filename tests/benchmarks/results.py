"""What each contender does on recorded finetunes, judged by thresholds from other ones.

Thresholds are chosen on all *other* configurations (leave one configuration out): the one that
separates harmed from healthy runs best there, and of several the one in their middle.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forcegauge.alarms import ALARMS
from tests.benchmarks.calibration import Run
from tests.benchmarks.contenders import CONTENDERS, Contender, sick, verdict


@dataclass(frozen=True)
class Call:
    """What a contender did on one run: the step of its alarm, if any."""

    run: Run
    alarm: int | None

    @property
    def lead(self) -> float | None:
        """Share of the run between the alarm and the turn of the held-out behaviour."""
        if self.alarm is None or self.run.turn is None:
            return None
        return (self.run.turn - self.alarm) / self.run.length


@dataclass(frozen=True)
class Result:
    """Calls of one contender on all runs."""

    name: str
    calls: Sequence[Call]

    def count(self, *, harmed: bool, alarmed: bool) -> int:
        """Runs of this outcome with (or without) an alarm."""
        return sum(
            (call.run.turn is not None) == harmed and (call.alarm is not None) == alarmed
            for call in self.calls
        )

    @property
    def lead(self) -> float | None:
        """Median lead over harmed runs; one without an alarm leads by nothing at its very end."""
        leads = [c.lead for c in self.calls if c.lead is not None]
        return statistics.median(leads) if leads else None


def fitted(contender: Contender, runs: Sequence[Run]) -> float:
    """The threshold that separates these runs best: the middle one of equals."""
    options = contender.thresholds(runs)
    quality = [_separation(contender, at, runs) for at in options]
    best = [at for at, found in zip(options, quality, strict=True) if found == max(quality)]
    return best[len(best) // 2]


def _separation(contender: Contender, at: float, runs: Sequence[Run]) -> float:
    """Balanced accuracy."""
    hits = [(contender.fires(r, at) is not None) == (r.turn is not None) for r in runs]
    sides = [
        [hit for hit, r in zip(hits, runs, strict=True) if (r.turn is not None) == side]
        for side in (True, False)
    ]
    return statistics.fmean(statistics.fmean(side) for side in sides if side)


def left_out(contender: Contender, runs: Sequence[Run]) -> Result:
    """Every run judged by a threshold that no run of its configuration helped to choose."""
    calls = []
    for run in runs:
        others = [r for r in runs if r.configuration != run.configuration]
        calls.append(Call(run, contender.fires(run, fitted(contender, others))))
    return Result(contender.name, calls)


def shipped(runs: Sequence[Run]) -> Result:
    """The verdict with the thresholds of the table, as users get it."""
    return Result("forcegauge verdict, as shipped", [Call(run, verdict(run)) for run in runs])


def results(runs: Sequence[Run]) -> list[Result]:
    """As shipped, then every contender with its thresholds from other configurations."""
    return [shipped(runs), *(left_out(contender, runs) for contender in CONTENDERS)]


def by_harm(runs: Sequence[Run], sizes: Sequence[float]) -> list[tuple[str, ...]]:
    """The verdict as shipped, counted with other sizes of what is called harm."""
    rows = []
    for size in sizes:
        found = shipped([replace(run, harm=size) for run in runs])
        rows.append((f"{size:g} nats", *confusion([found])[0][1:]))
    return rows


def by_spacing(runs: Sequence[Run], kept: Sequence[int]) -> list[tuple[str, ...]]:
    """The verdict as shipped with every ``kept``-th probe only, and how long before the turn the
    drift began that the first alarm names."""
    rows = []
    for every in kept:
        thinned = [run.thinned(every) for run in runs]
        began = statistics.median(x for x in map(_drift_lead, thinned) if x is not None)
        found = confusion([shipped(thinned)])[0][1:]
        rows.append((f"{2 * every} steps", *found, f"{began:+.0%}"))
    return rows


def by_streak(runs: Sequence[Run], streaks: Sequence[int]) -> list[tuple[str, ...]]:
    """The verdict as shipped but for the probes running that ``squeezing`` takes."""
    rows = []
    for streak in streaks:
        alarms = [replace(row, streak=streak) if row.name == "squeezing" else row for row in ALARMS]
        firsts = [next((step for step, _ in sick(run, alarms)), None) for run in runs]
        calls = [Call(run, first) for run, first in zip(runs, firsts, strict=True)]
        rows.append((str(streak), *confusion([Result("", calls)])[0][1:]))
    return rows


SPEED_HEADER = ("turned", "harmed", "alarmed", "median lead", "alarm at, of the steps to the turn")


def by_speed(calls: Sequence[Call], quick: int) -> list[tuple[str, ...]]:
    """Harmed runs that turned within ``quick`` steps, and those that took longer."""
    turned = [(call, call.run.turn) for call in calls if call.run.turn is not None]
    sides = (f"by step {quick}", True), ("later", False)
    return [
        (name, *_pace([(c, turn) for c, turn in turned if (turn <= quick) == side]))
        for name, side in sides
    ]


def _pace(calls: Sequence[tuple[Call, int]]) -> tuple[str, ...]:
    alarmed = [(call, call.alarm / turn) for call, turn in calls if call.alarm is not None]
    lead = statistics.median(call.lead or 0.0 for call, _ in alarmed)
    share = statistics.median(share for _, share in alarmed)
    return str(len(calls)), str(len(alarmed)), f"{lead:+.0%}", f"{share:.0%}"


def _drift_lead(run: Run) -> float | None:
    """Share of the run between the drift's beginning, as the first alarm has it, and the turn."""
    first = next(sick(run), None)
    if first is None or run.turn is None:
        return None
    return (run.turn - first[1].since_step) / run.length


HEADER = ("alarm by", "harmed, alarmed", "harmed, missed", "healthy, alarmed", "healthy, quiet")


def confusion(found: Sequence[Result]) -> list[tuple[str, ...]]:
    """Rows of the confusion table with the median lead."""
    rows = []
    for result in found:
        counts = [
            result.count(harmed=harmed, alarmed=alarmed)
            for harmed, alarmed in ((True, True), (True, False), (False, True), (False, False))
        ]
        lead = "" if result.lead is None else f"{result.lead:+.0%}"
        rows.append((result.name, *map(str, counts), lead))
    return rows


def per_run(result: Result) -> list[tuple[str, ...]]:
    """One row per run: outcome, when behaviour turned, when the alarm came."""
    return [
        (
            call.run.name,
            call.run.outcome,
            f"{call.run.change:+.2f}",
            " to ".join(f"{call.run.held_out[at]['accuracy']:.0%}" for at in (0, -1)),
            f"{call.run.held_out[-1]['repetition']:.0%}",
            "" if call.run.turn is None else f"{call.run.turn} of {call.run.length}",
            "" if call.alarm is None else str(call.alarm),
            "" if call.lead is None else f"{call.lead:+.0%}",
        )
        for call in result.calls
    ]


RUN_HEADER = (
    "run",
    "outcome",
    "held-out chosen (nats/token)",
    "held-out accuracy",
    "repeated n-grams",
    "turned at",
    "alarm at",
    "lead",
)
