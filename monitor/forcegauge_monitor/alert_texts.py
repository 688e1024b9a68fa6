"""What is told with an alert, as templates that Prometheus and Grafana both read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forcegauge_monitor.alert import OF_A_RUN, Alert
from forcegauge_monitor.alerts import OF_RUNS
from forcegauge_monitor.meta_alerts import META

RUNBOOKS = "http://localhost:8790/runbooks"
GRAFANA = "http://localhost:3000"

GROUPS = {"forcegauge.runs": OF_RUNS, "forcegauge.itself": META}
"""The groups of alerts."""

FORMS = {
    "count": 'printf "%.0f"',
    "nats": 'printf "%.2f nats"',
    "share": "humanizePercentage",
    "seconds": "humanizeDuration",
}
"""How a template shows a number."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where the links of an alert lead: ``runbooks`` holds one page for each alert."""

    runbooks: str = RUNBOOKS
    grafana: str = GRAFANA


def told_with(alert: Alert, places: Places, description: str) -> Json:
    """Everything that is told with an alert; values are templates."""
    chosen = [
        f"var-{name}={{{{ with $labels.{name} }}}}{{{{ urlquery . }}}}{{{{ end }}}}"
        for name in alert.labels
        if name in OF_A_RUN
    ]
    return {
        "summary": alert.summary,
        "description": description,
        "runbook_url": f"{places.runbooks.rstrip('/')}/{alert.name}",
        "dashboard_url": f"{places.grafana.rstrip('/')}/d/{alert.dashboard}?{'&'.join(chosen)}",
    }


def described(alert: Alert, now: str, figures: Mapping[str, str], there: str) -> str:
    """The description as a template.

    ``now`` and ``figures`` are what stands for the numbers, ``there`` is true where the alert's
    `known` is there.
    """
    labels = {name: f"{{{{ $labels.{name} }}}}" for name in alert.labels}
    values = {"now": now, **figures, **labels}
    text = alert.description.format_map(values)
    if not alert.unknown:
        return text
    return (
        f"{{{{ if {there} }}}}{text}{{{{ else }}}}{alert.unknown.format_map(values)}{{{{ end }}}}"
    )
