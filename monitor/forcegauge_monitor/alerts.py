"""The table of all alerts: one for each alarm, one for the collapse, and those of `meta_alerts`.

Nothing here needs more than the agent's own tables, so that `forcegauge monitor rules` is quick.
"""

from __future__ import annotations

from forcegauge.alarms import ALARMS, COLLAPSE, Alarm, Condition
from forcegauge.detectors import LABELS
from forcegauge_monitor.alert import HELD, OF_A_RUN, Alert, Figure, by, held
from forcegauge_monitor.meta_alerts import META

HEARD = "2m"
"""What the monitor heard counts so much later, so that the agent's own word comes first."""

MEMORY = "1d"
"""For so long the monitor's word fires an alert, and the agent's word keeps it from firing two."""

LATELY = "1h"
"""An alert about a run goes so long after the run's end, should its process live on."""

VERDICTS = ("squeezing", "diverging", "collapsed")
"""Verdicts with an alert that the monitor's record may fire too."""


def alert_name(row: Alarm) -> str:
    """The alert of an alarm: ``ForceGauge`` and its name in CamelCase."""
    return "ForceGauge" + "".join(part.capitalize() for part in row.name.split("_"))


SEVERITIES = {
    "diverging": "critical",
    "displacement": "info",
    "valley_force": "info",
    "hallucination_pressure": "info",
}
"""Critical is what ruins the model; what is seen in learning as well only informs."""

SUMMARIES = {
    "squeezing": "The run squeezes its answers into few tokens.",
    "diverging": "The run diverges: the model is being damaged everywhere.",
    "argmax_mass_spike": "The likeliest tokens gain mass in contexts of answers nobody trains on.",
    "hallucination_pressure": "Answers to other training prompts are pulled up.",
    "displacement": "The chosen answers become less likely while the margin grows.",
    "valley_force": "Most of the push falls on tokens that are unlikely already.",
    "entropy_collapse": "The model's distributions have lost most of their entropy.",
    "entropy_surge": "The model's distributions flatten quickly.",
    "repeater": "The model repeats itself in free-running outputs.",
    "eos_loss": "The model's answers stop ending.",
}

UNTIL = "It ends an hour after the run at the latest."
HEARD_TOO = " Or the monitor heard of it and Prometheus did not, within a day."
UNHEARD = (
    "The monitor heard of it in a heartbeat; Prometheus has no numbers, for it did not scrape the "
    "agent at the time. They are in the run's record."
)


def _of_alarm(row: Alarm) -> Alert:
    streak, needed = (
        held(f'forcegauge_{name}{{alarm="{row.name}"}}')
        for name in ("alarm_streak", "alarm_streak_needed")
    )
    expr = _of_a_run(f"{streak}\n>= {needed}")
    verdict = row.name in VERDICTS
    return Alert(
        alert_name(row),
        SEVERITIES.get(row.name, "warning"),
        SUMMARIES[row.name],
        _when(row),
        f"{expr}\nor\n{_heard(row.name)}" if verdict else expr,
        _numbers(row),
        _figures(row),
        known="streak",
        unknown=f"{{run}} is {row.name}. {UNHEARD} {row.advice}" if verdict else "",
        keep="1h" if verdict else "15m",
        alarm=row.name,
    )


def _of_a_run(vector: str) -> str:
    """Runs for which this holds, while they are active or were lately."""
    active = by(OF_A_RUN, f"max_over_time(forcegauge_run_active[{LATELY}])")
    return f"{by(OF_A_RUN, vector)}\nand\n{active} == 1"


def _figures(row: Alarm) -> dict[str, Figure]:
    matchers, form = f'alarm="{row.name}"', _form(row.conditions[0])
    return {
        "value": Figure("forcegauge_alarm_value", matchers, form),
        "threshold": Figure("forcegauge_alarm_threshold", matchers, form),
        "streak": Figure("forcegauge_alarm_streak", matchers),
        "needed": Figure("forcegauge_alarm_streak_needed", matchers),
        "since": Figure("forcegauge_alarm_since_step", matchers),
        "step": Figure("forcegauge_probe_step"),
    }


def _numbers(row: Alarm) -> str:
    first = row.conditions[0]
    label = LABELS[first.signal].rstrip(",")
    numbers = f"{label}: {{value}}, {_side(first)} {{threshold}}"
    otherwise = ", or scores or losses are not finite" if row.or_else else ""
    return (
        f"{{run}} at step {{step}}: {numbers}{otherwise}, for {{streak}} probes running "
        f"({{needed}} are needed), since step {{since}}. {row.meaning} {row.advice}"
    )


def _when(row: Alarm) -> str:
    said = " and ".join(_condition(each) for each in row.conditions)
    others = "".join(f", or {_condition(each)}" for each in row.or_else)
    push = ", where the loss pushes some answer down" if row.needs_push else ""
    heard = HEARD_TOO if row.name in VERDICTS else ""
    return f"{row.streak} probes running: {said}{others}{push}. {UNTIL}{heard}"


def _condition(each: Condition) -> str:
    unit = " nats" if _form(each) == "nats" else ""
    return f"`{each.signal}` {_side(each)} {each.size:g}{unit}"


def _side(each: Condition) -> str:
    return "above" if each.above else "below"


def _form(each: Condition) -> str:
    return "share" if each.signal.endswith("_ratio") else "nats"


def _heard(verdict: str) -> str:
    """Runs whose verdict the monitor heard within a day, and Prometheus never from the agent.

    The monitor keeps a verdict for weeks. Its own target's namespace says nothing of the run, and
    neither does its cluster's absence: such a monitor knows the runs of all clusters.
    """
    told, seen = (
        f'forcegauge_{name}{{state="{verdict}"}}' for name in ("monitor_run_state", "run_state")
    )
    everywhere = told.replace("}", ',cluster=""}')
    agent = f"max_over_time({seen}[{MEMORY}]) == 1"
    return (
        "(\n"
        f"  max by (cluster, run) (last_over_time({told}[{HELD}] offset {HEARD}))\n"
        f"  unless max by (cluster, run) (last_over_time({told}[1h] offset {MEMORY}))\n"
        f"  unless on (cluster, run) ({agent})\n"
        "  unless on (run) (\n"
        f"    {agent}\n"
        f"    and on (run) last_over_time({everywhere}[{HELD}] offset {HEARD})\n"
        "  )\n"
        ")"
    )


def _collapsed() -> Alert:
    state = held('forcegauge_run_state{state="collapsed"}')
    streaks = {name: Figure("forcegauge_alarm_streak", f'alarm="{name}"') for name in COLLAPSE}
    steps = {
        "since": Figure("forcegauge_verdict_since_step"),
        "step": Figure("forcegauge_probe_step"),
    }
    advice = "Stop the run and go back to the last healthy checkpoint; its record names it."
    return Alert(
        "ForceGaugeCollapsed",
        "critical",
        "The run has collapsed.",
        "The verdict is `collapsed`: `repeater`, `entropy_collapse` or `eos_loss` is on together "
        f"with squeezing or diverging, or alone for twice its streak. {UNTIL}{HEARD_TOO}",
        f"{_of_a_run(f'{state} == 1')}\nor\n{_heard('collapsed')}",
        "{run} has collapsed since step {since}, seen at step {step}. Probes running with "
        "repeated outputs: {repeater}, with lost entropy: {entropy_collapse}, without an end of "
        f"answers: {{eos_loss}}. {advice}",
        {**streaks, **steps},
        known="step",
        unknown=f"{{run}} has collapsed. {UNHEARD} {advice}",
        keep="1h",
    )


OF_RUNS = (*(_of_alarm(row) for row in ALARMS), _collapsed())
"""What happens to a model."""

ALERTS = (*OF_RUNS, *META)
"""Every alert."""
