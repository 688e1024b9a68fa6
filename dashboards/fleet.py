"""Fleet: every run, the sick ones first."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.frame import Section, dashboard, to_run, to_runbook
from dashboards.looks import (
    AGO,
    NATS_PER_TOKEN,
    SHARE,
    STEP,
    VERDICT_COLORS,
    alarm_map,
    fixed,
    prop,
    verdict_map,
)
from dashboards.panels import Column, Frame, Panel, Scale, about, lines, number, rows, verdicts
from dashboards.promql import (
    GROUP,
    PLACE,
    last,
    series,
    sick_since_step,
    told_since,
    told_verdict,
    verdict,
    verdict_now,
    verdict_since,
)

UID = "forcegauge-fleet"

ALL_VERDICTS = f"({verdict(PLACE)} or on (run) {told_verdict()})"


def fleet() -> sdk.Dashboard:
    """The dashboard of all runs."""
    sections: list[Section] = [
        ("Who is sick?", [_counts(), _table()]),
        ("How they got there", [_bands(), _squeeze(), _overhead()]),
    ]
    text = "Every finetuning run: how it is, since when, and which signal is worst."
    return dashboard(UID, text, sections)


def _counts() -> Panel:
    frame = Frame(
        "Runs by verdict",
        about(
            "How many of the runs seen in the chosen time have each verdict now. Squeezing, "
            "diverging and collapsed runs are sick.",
            "run_state",
            "monitor_run_state",
        ),
        24,
        3,
    )
    asks = {
        word: f"count({ALL_VERDICTS} == {code}) or vector(0)"
        for code, word in reversed(list(enumerate(VERDICT_COLORS)))
    }
    looks = {word: [fixed(color)] for word, color in VERDICT_COLORS.items()}
    return number(frame, Scale("none", 0), asks, overrides=looks)


def _table() -> Panel:
    frame = Frame(
        "All runs (click a run to see what happens in it)",
        about(
            "One row for each run seen in the chosen time, the sickest first; click a heading to "
            "sort. A run that has ended keeps its last values; one whose process Prometheus did "
            "not see in this time has the verdict that the monitor was told. **Sick since step** "
            "is the first probe after the last healthy one. **Worst alarm** is the one that has "
            "held for the most probes, as a multiple of what it needs (1 or more: it is on).",
            *("run_state", "monitor_run_state", "alarm_streak", "alarm_streak_needed"),
            *("squeeze_nats", "probe_step", "probe_timestamp_seconds", "run_active"),
        ),
        24,
        12,
    )
    titles = {"run": "run", "alarm": "worst alarm", "cluster": "cluster", "namespace": "namespace"}
    return rows(
        frame,
        _columns(),
        labels=titles,
        overrides={
            "run": [to_run()],
            "worst alarm": [
                prop("mappings", [alarm_map()]),
                to_runbook(),
            ],
        },
        sort=("verdict",),
        empty="no run seen in this time",
    )


def _columns() -> list[Column]:
    verdict_looks = (
        prop("mappings", [verdict_map()]),
        prop("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
    )
    since = f"({verdict_since(PLACE)} or on (run) {told_since()}) * 1000"
    squeeze = last(series("squeeze_nats", PLACE), PLACE)
    step = last(series("probe_step", PLACE), PLACE)
    probed = f"{last(series('probe_timestamp_seconds', PLACE), PLACE)} * 1000"
    active = last(series("run_active", PLACE), PLACE)
    return [
        Column("verdict", ALL_VERDICTS, Scale("none", 0), verdict_looks),
        Column("since", since, Scale(AGO, None)),
        Column("sick since step", sick_since_step(PLACE), Scale(STEP, 0)),
        Column("alarm held", _worst(), Scale("suffix:× needed", 1, ((1.0, "red"),))),
        Column("squeeze", squeeze, Scale(NATS_PER_TOKEN, 2, ((0.5, "orange"),))),
        Column("step", step, Scale(STEP, 0)),
        Column("last probe", probed, Scale(AGO, None)),
        Column("trains", active, Scale("bool_yes_no", 0)),
    ]


def _worst() -> str:
    by = f"{GROUP}, alarm"
    streak = last(series("alarm_streak", PLACE), PLACE, by)
    needed = last(series("alarm_streak_needed", PLACE), PLACE, by)
    return f"topk by ({GROUP}) (1, {streak} / {needed} > 0)"


def _bands() -> Panel:
    frame = Frame(
        "Verdict of each run over time",
        about("One band for each run; a gap is a time at which it was not heard of.", "run_state"),
        24,
        8,
    )
    return verdicts(frame, {"{{run}}": verdict_now(PLACE)})


def _squeeze() -> Panel:
    frame = Frame(
        "Squeeze index of each run (higher is worse)",
        about(
            "A line for each run. Where it rises and stays up, answers that nobody trains on lose "
            "mass to the likeliest tokens. The dashed line is the size that the alarm asks for.",
            "squeeze_nats",
        ),
        12,
        9,
    )
    expr = f"max by (run) ({series('squeeze_nats', PLACE)})"
    scale = Scale(NATS_PER_TOKEN, 2, ((0.5, "red"),))
    return lines(frame, scale, {"{{run}}": expr}, limited=True)


def _overhead() -> Panel:
    frame = Frame(
        "Share of training time that probes took",
        about(
            "A line for each run. The dashed line is the default budget.", "probe_overhead_ratio"
        ),
        12,
        9,
    )
    expr = f"max by (run) ({series('probe_overhead_ratio', PLACE)})"
    scale = Scale(SHARE, 2, ((0.01, "orange"),))
    return lines(frame, scale, {"{{run}}": expr}, limited=True, bounds=(0, None))
