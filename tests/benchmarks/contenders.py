"""What may raise an alarm on a recorded run: this package's verdict, what people watch today, and
sequential detectors. Each says at which step it first fires for a given threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from forcegauge.alarms import ALARMS, Alarm, Condition
from forcegauge.detectors import Detector, Judgement
from forcegauge.phase import pushes_down
from forcegauge.sequential import Cusum, Ewma, PageHinkley, standardised
from tests.benchmarks.calibration import Run

STREAK = 2
SICK = ("squeezing", "diverging", "collapsed")

Series = list[tuple[int, float]]
Level = Callable[[Run], Series]


def judgements(run: Run, alarms: Sequence[Alarm] = ALARMS) -> list[tuple[int, Judgement]]:
    """What the agent's own detector says after each probe but the baseline."""
    loss = "sft" if run.config["loss"] == "both" else run.config["loss"]
    detector = Detector(0, pushes_down(loss), alarms)
    return [
        (p["step"], detector.update(p["step"], p["signals"], p["noise"])) for p in run.probes[1:]
    ]


def scaled(factor: float) -> tuple[Alarm, ...]:
    """The table of alarms with every size in nats times a factor."""

    def grown(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
        return tuple(
            replace(c, size=c.size * factor) if c.signal.endswith("_nats") else c
            for c in conditions
        )

    return tuple(replace(row, conditions=grown(row.conditions)) for row in ALARMS)


@dataclass(frozen=True)
class Contender:
    """``fires(run, threshold)``: the step of the first alarm or None; thresholds to choose from
    grow with what it takes."""

    name: str
    fires: Callable[[Run, float], int | None]
    thresholds: Callable[[Sequence[Run]], Sequence[float]]


@cache
def verdict(run: Run, factor: float = 1.0) -> int | None:
    """The step at which the verdict first says that something is wrong."""
    return next((step for step, _ in sick(run, scaled(factor))), None)


def sick(run: Run, alarms: Sequence[Alarm] = ALARMS) -> Iterator[tuple[int, Judgement]]:
    """The judgements that say so."""
    said = judgements(run, alarms)
    return ((step, judged) for step, judged in said if judged.verdict in SICK)


def persists(series: Series, threshold: float, streak: int = STREAK) -> int | None:
    """The step of the ``streak``-th value running above a threshold."""
    running = 0
    for step, value in series:
        running = running + 1 if value > threshold else 0
        if running == streak:
            return step
    return None


def watching(name: str, level: Level, streak: int = STREAK) -> Contender:
    """An alarm when a level stays above a threshold."""
    level = cache(level)

    def thresholds(runs: Sequence[Run]) -> Sequence[float]:
        peaks = sorted({v for run in runs for _, v in level(run) if math.isfinite(v)})
        return [float(q) for q in np.quantile(peaks, np.linspace(0, 1, 101))]

    return Contender(name, lambda run, at: persists(level(run), at, streak), thresholds)


def signal(name: str, sign: float = 1.0) -> Level:
    """A signal of the record, where it is defined."""
    return lambda run: [
        (p["step"], sign * p["signals"][name]) for p in run.probes[1:] if name in p["signals"]
    ]


def change(response_type: str, place: int) -> Level:
    """Fall of a level of one response type (0 log-prob, 1 argmax log-prob, 2 entropy)."""

    def level(run: Run) -> Series:
        start = run.probes[0]["levels"][response_type][place]
        return [
            (p["step"], start - p["levels"][response_type][place])
            for p in run.probes[1:]
            if response_type in p["levels"]
        ]

    return level


def margin(run: Run) -> Series:
    """Growth of the preference margin on the probes."""
    start = run.probes[0]["signals"]["preference_margin_nats"]
    return [(p["step"], p["signals"]["preference_margin_nats"] - start) for p in run.probes[1:]]


def training(field: str) -> Level:
    """A value of every step over its mean in the first three."""

    def level(run: Run) -> Series:
        values = [abs(row[field]) for row in run.steps]
        norm = max(float(np.mean(values[:3])), 1e-6)
        mean = Ewma(0.3, norm)
        return [
            (row["step"], mean.update(v, 1) / norm)
            for row, v in zip(run.steps, values, strict=True)
        ]

    return level


def accumulated(make: Callable[[], Cusum | Ewma | PageHinkley]) -> Level:
    """A sequential detector on the squeeze beyond sharpening, in units of its noise."""

    def level(run: Run) -> Series:
        detector, before, found = make(), 0, []
        for probe in run.probes[1:]:
            step, value = probe["step"], probe["signals"].get("squeeze_excess_nats", math.nan)
            z = standardised(value, probe["noise"].get("squeeze_excess_nats", 0.0), floor=0.1)
            if isinstance(detector, Cusum):
                found.append((step, detector.update(z, step, step - before)))
            else:
                found.append((step, detector.update(z, step - before)))
            before = step
        return found

    return level


FACTORS = tuple(float(f) for f in np.geomspace(0.2, 5.0, 41))

CONTENDERS = (
    Contender("forcegauge verdict", verdict, lambda runs: FACTORS),
    watching("loss, over its start", training("loss")),
    watching("gradient norm, over its start", training("grad_norm")),
    watching("chosen log-prob falls", signal("chosen_change_nats", -1.0)),
    watching("preference margin grows", margin),
    watching("KL from the start (greedy)", change("greedy", 0)),
    watching("entropy falls (chosen)", change("chosen", 2)),
    watching("squeeze index alone", signal("squeeze_nats")),
    watching("CUSUM of the squeeze", accumulated(Cusum), 1),
    watching("EWMA of the squeeze", accumulated(Ewma), 1),
    watching("Page-Hinkley of the squeeze", accumulated(PageHinkley), 1),
)
