"""The page about the alarms: their table, and what they did on the recorded finetunes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from forcegauge.alarms import ALARMS, NOISE_MULTIPLE, QUIET_PROBES, Alarm, Condition
from tests.benchmarks.calibration import HARM_NATS, REPEATS, Run
from tests.benchmarks.pictures import save_png
from tests.benchmarks.results import (
    HEADER,
    RUN_HEADER,
    SPEED_HEADER,
    Result,
    by_harm,
    by_spacing,
    by_speed,
    by_streak,
    confusion,
    per_run,
)

PAGE = Path(__file__).parents[2] / "agent" / "alarms.md"
PICTURE = PAGE.parent / "pictures" / "alarms.png"

INTRO = f"""# Alarms: what they mean, and how they were calibrated

This page is written by `make bench-alarms` from the table in `forcegauge/alarms.py` and from the
recorded finetunes in `tests/benchmarks/records/`.

An alarm holds at a probe when *all* its conditions hold there. It goes on after as many such probes
running as its streak says, and off after {QUIET_PROBES} quiet ones. A size in nats is never under
{NOISE_MULTIPLE:g} times the noise of its signal. A run's own sizes:
`ForceGauge(..., thresholds={{"squeezing": 0.8}})`.
"""

CALIBRATION = f"""## On recorded finetunes

{{count}} short finetunes of SmolLM2-135M-Instruct (batches of 4 pairs, 24 to 64 optimizer steps, a
probe of 8 prompts x 12 types every second step): losses, learning rates, seeds, data. What became
of each was read from *other* prompts that no probe and no detector sees: a run is **harmed** when
held-out chosen answers end more than {HARM_NATS:g} nats per token below their start (between
0.12 and 0.27, where no run ends), **repeating** when greedy outputs there repeat {REPEATS:.0%}
more of their n-grams; it *turned* at the first look (every fourth step) from which on that stays
so. These runs are small and of one model: they check the sizes, they do not promise them for yours.

The aim: an alarm on every harmed run, none on a healthy one, and a median lead of a fifth of the
run. With the sizes as shipped every harmed preference or RL run and every diverging one is alarmed.
`sft-tiny` gets no verdict: it is SFT that learned four pairs by heart until held-out answers fell,
and no verdict is for that; its alarm `hallucination_pressure` was on from step 8. One healthy run
is alarmed: `sppo-squeeze` squeezed for a while (held-out chosen had lost 0.22 nats at step 8) and
recovered by itself. The lead is not reached: in every alarmed preference or RL run the alarm comes
before held-out answers turn, but only by one or two probes where that is quick; in `sft-diverge` it
comes after.

![When each run turned and when its alarm came](pictures/alarms.png)

"""

SPEED = """## Quick and slow harm

`squeezing` takes two probes running. A run that turns within a dozen steps is at its third to
seventh probe by then, and the alarm comes one or two probes before the harm; in one that is ruined
slowly it has more time (in `dpo-slow` 24 of 64 steps).

"""

QUICK = 12

STREAK = """## With another streak

What `squeezing` would have done with other numbers of probes running: with a third one the alarm
comes only as the quick runs turn, and no healthy run is spared. One alone would lead by more, and
be at the mercy of one odd probe. Two were chosen on these same runs.

"""

STREAKS = (1, 2, 3)

HARM = """## With another size of harm

The same alarms, counted with other sizes of the loss that makes a run harmed: the alarm leads a
deep harm by more, and what is only a shallow one then counts as a healthy run that was alarmed.

"""

HARM_SIZES = (0.2, 0.25, 0.5, 0.7)

SPACING = """## With fewer probes

An alarm needs its streak of probes, so it comes about two spacings after the drift began: at one
probe every second step of 24, a sixth of the run. The last column is what the alarm says when it
comes: the step at which the drift began, in shares of the run before held-out answers turned; a
checkpoint from before that step is the one to go back to. Probing at every step was not recorded.

"""

KEPT = (1, 2)

COMPARISON = """## Against what people watch

For each row below but the first, the threshold was chosen on all *other* configurations (leave one
configuration out), the one that separates harmed from healthy runs best there, so no row knows the
run that it judges. All of them need two values running; the sequential detectors of the last
three rows carry their own memory (in the agent a streak switches an alarm, and a CUSUM dates the
step at which its drift began). Lead: median over harmed runs that were alarmed, in shares of the
run; positive is before the held-out behaviour turned.

"""


def write(runs: Sequence[Run], found: Sequence[Result]) -> None:
    """Page and picture."""
    PAGE.write_text(page(runs, found))
    save_png(timeline(found[0]), PICTURE, height=80 + 24 * len(runs))


def page(runs: Sequence[Run], found: Sequence[Result]) -> str:
    """The page from the results, of which the first is the verdict as shipped."""
    parts = [
        INTRO,
        table(("alarm", "holds when", "streak", "meaning", "what to do"), map(described, ALARMS)),
        CALIBRATION.format(count=len(runs)),
        table(RUN_HEADER, per_run(found[0])),
        COMPARISON,
        table((*HEADER, "median lead"), confusion(found)),
        SPEED,
        table(SPEED_HEADER, by_speed(found[0].calls, QUICK)),
        STREAK,
        table(("probes running", *HEADER[1:], "median lead"), by_streak(runs, STREAKS)),
        HARM,
        table(("harm from", *HEADER[1:], "median lead"), by_harm(runs, HARM_SIZES)),
        SPACING,
        table(
            ("probes every", *HEADER[1:], "median lead", "drift began before"),
            by_spacing(runs, KEPT),
        ),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]] | map[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def described(row: Alarm) -> tuple[str, ...]:
    """One alarm as a row of the page."""
    holds = " and ".join(map(_condition, row.conditions))
    holds += "".join(f", or {_condition(c)}" for c in row.or_else)
    push = "; only where the loss pushes down" if row.needs_push else ""
    return f"`{row.name}`", holds + push, str(row.streak), row.meaning, row.advice


def _condition(condition: Condition) -> str:
    unit = " nats" if condition.signal.endswith("_nats") else ""
    sign = ">" if condition.above else "<"
    return f"`{condition.signal}` {sign} {condition.size:g}{unit}"


def timeline(result: Result) -> go.Figure:
    """One line per run: where it turned and where the alarm came, in shares of the run."""
    calls = sorted(result.calls, key=lambda c: (c.run.outcome, c.run.name), reverse=True)
    names = [f"{c.run.name} ({c.run.outcome})" for c in calls]
    figure = go.Figure()
    figure.add_bar(
        y=names, x=[1.0] * len(calls), orientation="h", marker_color="#e8ecf1", width=0.5
    )
    for label, symbol, colour, steps in (
        ("verdict says so", "triangle-right", "#c0392b", [c.alarm for c in calls]),
        ("held-out behaviour turned", "line-ns-open", "#2c3e50", [c.run.turn for c in calls]),
    ):
        share = [None if s is None else s / c.run.length for s, c in zip(steps, calls, strict=True)]
        marker = {"symbol": symbol, "size": 14, "color": colour, "line": {"width": 3}}
        figure.add_scatter(y=names, x=share, mode="markers", name=label, marker=marker)
    figure.data[0].showlegend = False
    figure.update_layout(
        xaxis={"title": "share of the run", "tickformat": ".0%", "range": [0, 1.02]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 210, "r": 20, "t": 40, "b": 50},
    )
    return figure
