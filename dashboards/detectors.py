"""The alarms of a run: which are on, and each signal against its threshold."""

from __future__ import annotations

from dashboards.frame import link, to_runbook
from dashboards.looks import (
    FILLED,
    NATS,
    SHARE,
    UP_COLOR,
    alarm_map,
    fixed,
    limit_looks,
    prop,
    width,
)
from dashboards.panels import Column, Frame, Panel, Property, Scale, about, lines, rows
from dashboards.promql import GROUP, ONE_RUN, last, series
from forcegauge.alarms import ALARMS, Alarm, Condition
from forcegauge_monitor.alerts import alert_name

BY = f"{GROUP}, alarm"
FIGURES = ("alarm_value", "alarm_threshold", "alarm_streak", "alarm_streak_needed")


def alarms_on() -> Panel:
    """The table of alarms, those that are on first."""
    frame = Frame(
        "Alarms (those that are on stand first; click one for its runbook)",
        about(
            "An alarm is on when all its conditions held for the probes it needs. Value and "
            "threshold are of its first condition, in nats or a share.",
            *FIGURES,
        ),
        13,
        12,
    )
    value, threshold, streak, needed = (last(series(n, ONE_RUN), ONE_RUN, BY) for n in FIGURES)
    count, plain = Scale("none", 0), Scale("none", 2)
    columns = [
        Column("on", f"{streak} >= bool {needed}", Scale("bool_on_off", 0), 60, _on_looks()),
        Column("held, probes", streak, count, 130),
        Column("needed", needed, count, 85),
        Column("value", value, plain, 85),
        Column("threshold", threshold, plain, 100),
    ]
    looks = {
        "alarm": [
            prop("mappings", [alarm_map()]),
            to_runbook(),
            width(190),
        ]
    }
    return rows(
        frame,
        columns,
        labels={"alarm": "alarm"},
        order=("alarm", *(column.title for column in columns)),
        hidden=("run", "cluster", "namespace"),
        overrides=looks,
        sort=("on", "held, probes"),
    )


def _on_looks() -> tuple[Property, ...]:
    words = {
        "0": {"text": "off", "color": "transparent", "index": 0},
        "1": {"text": "ON", "color": "red", "index": 1},
    }
    return (
        prop("mappings", [{"type": "value", "options": words}]),
        FILLED,
    )


def streaks() -> Panel:
    """How long each alarm's conditions have held, as a multiple of what it needs."""
    frame = Frame(
        "How long each alarm has held (on at or above the line)",
        about(
            "Probes running at which all conditions held, divided by the probes needed: 1 is on. "
            "One noisy probe is no alarm.",
            "alarm_streak",
            "alarm_streak_needed",
        ),
        16,
        7,
    )
    streak, needed = (f"max by (alarm) ({series(n, ONE_RUN)})" for n in FIGURES[2:])
    scale = Scale("suffix:×", 1, ((1.0, "red"),))
    asks = {"{{alarm}}": f"{streak} / {needed}"}
    return lines(frame, scale, asks, limited=True, bounds=(0, None))


def detectors() -> list[Panel]:
    """One figure for each alarm."""
    return [_detector(row) for row in ALARMS]


def _detector(row: Alarm) -> Panel:
    name = row.name.replace("_", " ")
    frame = Frame(
        f"{name.capitalize()} (alarm {_sign(row.conditions[0])} the line)",
        about(f"{row.meaning}\n\n{_rule(row)}\n\n{row.advice}", *FIGURES[:2]),
        8,
        7,
        (link("runbook", "${runbooks}" + alert_name(row)),),
    )
    value, threshold = (f"max by (run) ({series(n, ONE_RUN, alarm=row.name)})" for n in FIGURES[:2])
    unit = NATS if row.conditions[0].signal.endswith("_nats") else SHARE
    scale = Scale(unit, 2 if unit == NATS else 1, empty="not defined for this run")
    looks = {"value": [fixed(UP_COLOR)], "threshold": limit_looks()}
    return lines(frame, scale, {"value": value, "threshold": threshold}, overrides=looks)


def _rule(row: Alarm) -> str:
    held = " and ".join(_condition(each) for each in row.conditions)
    others = "".join(f", or {_condition(each)}" for each in row.or_else)
    return f"On after {row.streak} probes running with {held}{others}."


def _condition(condition: Condition) -> str:
    return f"`{condition.signal}` {_sign(condition)} {condition.size:g}"


def _sign(condition: Condition) -> str:
    return "above" if condition.above else "below"
