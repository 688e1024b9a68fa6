"""Fleet: every run, the sick ones first."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.frame import Section, dashboard, to_run, to_runbook
from dashboards.looks import (
    AGO,
    NATS,
    STEP,
    VERDICT_COLORS,
    alarm_map,
    fixed,
    prop,
    verdict_cell,
    width,
)
from dashboards.panels import Column, Frame, Panel, Scale, about, lines, number, rows, verdicts
from dashboards.promql import (
    GROUP,
    PLACE,
    last,
    most,
    series,
    sick_since_step,
    told_since,
    told_verdict,
    trains,
    verdict,
    verdict_now,
    verdict_since,
    was_sick,
)
from forcegauge.alarms import ALARMS
from forcegauge_monitor.alerts import SEVERITIES

UID = "forcegauge-fleet"

ALL_VERDICTS = f"({verdict(PLACE)} or on (run) {told_verdict(PLACE)})"

INFORM = "|".join(row.name for row in ALARMS if SEVERITIES.get(row.name) == "info")

BY = f"{GROUP}, alarm"
NEEDED = last(series("alarm_streak_needed", PLACE), PLACE, BY)
STREAK = last(series("alarm_streak", PLACE), PLACE, BY)
SERIOUS = last(series("alarm_streak", f'{PLACE}, alarm!~"{INFORM}"'), PLACE, BY)
WORST = (
    f"topk by ({GROUP}) (1, {SERIOUS} / {NEEDED} >= 1)"
    f" or on ({GROUP}) topk by ({GROUP}) (1, {STREAK} / {NEEDED} > 0)"
)

ORDER = (
    *("run", "verdict", "since", "sick since step", "worst alarm", "held, × needed"),
    *("squeeze, nats", "step", "last probe", "trains", "cluster", "namespace"),
)


def fleet() -> sdk.Dashboard:
    """The dashboard of all runs."""
    sections: list[Section] = [
        ("Who is sick?", [_counts(), _table()]),
        ("How they got there", [_bands(), _squeeze(), _chosen()]),
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
        4,
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
            "not see in this time has the verdict that the monitor was told. **Trains**: "
            "Prometheus hears of it now and it has not ended. **Sick since step** "
            "is where it began, as its agent tells. **Worst alarm** is the one that has "
            "held longest, as a multiple of the probes it needs (1 or more: it is on); one that "
            "only informs stands back behind others that are on.",
            *("run_state", "monitor_run_state", "alarm_streak", "alarm_streak_needed"),
            *("squeeze_nats", "verdict_since_step", "probe_step", "probe_timestamp_seconds"),
            "run_active",
        ),
        24,
        13,
    )
    titles = {"run": "run", "alarm": "worst alarm", "cluster": "cluster", "namespace": "namespace"}
    looks = {
        "run": [to_run(), width(140)],
        "worst alarm": [prop("mappings", [alarm_map()]), to_runbook(), width(155)],
        "cluster": [width(65)],
        "namespace": [width(92)],
    }
    return rows(frame, _columns(), labels=titles, order=ORDER, overrides=looks, sort=("verdict",))


def _columns() -> list[Column]:
    since = f"({verdict_since(PLACE)} or on (run) {told_since()}) * 1000"
    squeeze = last(series("squeeze_nats", PLACE), PLACE)
    step = last(series("probe_step", PLACE), PLACE)
    probed = f"{last(series('probe_timestamp_seconds', PLACE), PLACE)} * 1000"
    return [
        Column("verdict", ALL_VERDICTS, Scale("none", 0), 95, verdict_cell()),
        Column("since", since, Scale(AGO, None), 105),
        Column("sick since step", sick_since_step(PLACE), Scale(STEP, 0), 115),
        Column("held, × needed", WORST, Scale("none", 1, ((1.0, "red"),)), 112),
        Column("squeeze, nats", squeeze, Scale("none", 2, ((0.5, "orange"),)), 103),
        Column("step", step, Scale(STEP, 0), 55),
        Column("last probe", probed, Scale(AGO, None), 115),
        Column("trains", trains(PLACE), Scale("bool_yes_no", 0), 55),
    ]


def _bands() -> Panel:
    frame = Frame(
        "Runs that were sick in this time: their verdict",
        about("One band for each run; a gap is a time at which it was not heard of.", "run_state"),
        24,
        9,
    )
    expr = f"({verdict_now(PLACE)}) and on (run) {was_sick(PLACE)}"
    return verdicts(frame, {"{{run}}": expr}, empty="no run was sick in this time")


def _squeeze() -> Panel:
    frame = Frame(
        "The ten most squeezed runs: squeeze index",
        about(
            "Where a line rises and stays up, answers that nobody trains on lose mass to the "
            "likeliest tokens. The dashed line is the size that the alarm asks for.",
            "squeeze_nats",
        ),
        12,
        10,
    )
    scale = Scale(NATS, 2, ((0.5, "red"),))
    return lines(frame, scale, {"{{run}}": most("squeeze_nats", PLACE)}, limited=True)


def _chosen() -> Panel:
    frame = Frame(
        "The ten runs whose chosen answers fell furthest",
        about(
            "Log-probability of the chosen answers since the start of the phase: below 0 they are "
            "less likely than before training.",
            "logprob_change_nats",
        ),
        12,
        10,
    )
    expr = most("logprob_change_nats", PLACE, "bottomk", response_type="chosen")
    return lines(frame, Scale(NATS), {"{{run}}": expr})
