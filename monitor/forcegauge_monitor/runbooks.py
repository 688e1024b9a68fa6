"""A page for each alert: what it means and what to do, from the table of alarms."""

from __future__ import annotations

from forcegauge.alarms import ALARMS, Alarm

COLLAPSED = """# ForceGaugeCollapsed

The model repeats itself, ends no answer any more, or has lost its entropy, on top of squeezing or
diverging or alone for long. The verdict stays for the rest of the phase.

## What to do

Stop the run. Go back to the last healthy checkpoint; its events say which one that is.
"""


def runbook(alert: str) -> str | None:
    """The page of an alert (``ForceGaugeSqueezing``) as Markdown; None for an unknown one."""
    if alert == "ForceGaugeCollapsed":
        return COLLAPSED
    return next((_page(alert, row) for row in ALARMS if alert_name(row) == alert), None)


def alert_name(row: Alarm) -> str:
    """The alert of an alarm: ``ForceGauge`` and its name in CamelCase."""
    return "ForceGauge" + "".join(part.capitalize() for part in row.name.split("_"))


def _page(alert: str, row: Alarm) -> str:
    holds = [f"- `{each.signal}` {_sign(each.above)} {each.size:g}" for each in row.conditions]
    lines = [f"# {alert}", "", row.meaning, "", "## What to do", "", row.advice, ""]
    lines += ["## When it is on", "", f"{row.streak} probes running, all of these hold:", ""]
    return "\n".join([*lines, *holds, ""])


def _sign(above: bool) -> str:
    return "above" if above else "below"
