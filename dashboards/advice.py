"""What to do for each verdict, as the Run dashboard says it."""

from __future__ import annotations

from forcegauge.alarms import WARMING_PROBES, alarm
from forcegauge_monitor.alerts import alert_name

RUNBOOK = "[runbook](${{runbooks}}{})"

_TOLD = {name: alarm(name) for name in ("squeezing", "diverging")}

ADVICE = "\n\n".join(
    (
        *(
            f"**{name}**: {row.meaning} *{row.advice}* {RUNBOOK.format(alert_name(row))}"
            for name, row in _TOLD.items()
        ),
        "**collapsed**: the model repeats itself, ends no answer, or has lost its entropy. "
        "*Stop the run; go back to a checkpoint some probes before the last healthy step.* "
        + RUNBOOK.format("ForceGaugeCollapsed"),
        "**warming**: wait. There are fewer than "
        f"{WARMING_PROBES} probes since the start of the phase.",
        "**learning**: nothing. An alarm may be on all the same: see the table beside this.",
    )
)
"""Markdown; meaning and advice are the alarms' own."""
