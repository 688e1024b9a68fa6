"""What an alert is: a row of the tables `alerts` and `meta_alerts`."""

from __future__ import annotations

from dataclasses import dataclass

OF_A_RUN = ("cluster", "namespace", "run")
"""Labels of an alert about a run; the first two are there where targets have them."""

RUN_BOARD = "forcegauge-run"

HELD = "5m"
"""A failed scrape, or several, change nothing for so long."""


@dataclass(frozen=True)
class Figure:
    """A number in a description: the largest of a selector's series with the alert's labels.

    ``form`` says how it is shown: ``count``, ``nats``, ``share`` (of 1) or ``seconds``; ``over``
    is how old it may be.
    """

    metric: str
    matchers: str = ""
    form: str = "count"
    over: str = HELD


@dataclass(frozen=True)
class Alert:
    """One alert. ``labels`` are the ones that tell its instances apart.

    ``summary`` is a constant sentence, ``when`` says in words what ``expr`` asks. In
    ``description`` ``{name}`` stands for a figure of that name, ``{cluster}``, ``{run}``... for a
    label, ``{now}`` for the value of ``expr``, shown as ``form`` says, which is above 0 where it
    fires. ``known`` is a label or a figure: without it ``unknown`` is said instead. ``wait`` is
    Prometheus' ``for``, ``keep`` its ``keep_firing_for``; both are empty for none. ``alarm`` is
    the alarm that it comes from.
    """

    name: str
    severity: str
    summary: str
    when: str
    expr: str
    description: str
    figures: dict[str, Figure]
    labels: tuple[str, ...] = OF_A_RUN
    form: str = "count"
    known: str = ""
    unknown: str = ""
    dashboard: str = RUN_BOARD
    wait: str = ""
    keep: str = ""
    alarm: str = ""


def held(selector: str, over: str = HELD) -> str:
    """The last value of a selector's series, also while scrapes fail for a short time."""
    return f"last_over_time({selector}[{over}])"


def by(labels: tuple[str, ...], vector: str, operator: str = "max") -> str:
    """One series for each instance of an alert, whatever else the targets' labels are."""
    inner = vector.strip().replace("\n", "\n  ")
    return f"{operator} by ({', '.join(labels)}) (\n  {inner}\n)"
