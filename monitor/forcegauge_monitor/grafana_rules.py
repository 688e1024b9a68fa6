"""The table of alerts as rules that Grafana evaluates: a file for its alert provisioning.

Grafana's templates cannot ask for numbers, so that each figure is a query of its rule.
"""

from __future__ import annotations

import re

from forcegauge_monitor.alert import Alert, Figure, by, held
from forcegauge_monitor.alert_texts import FORMS, GROUPS, Json, Places, described, told_with

FOLDER = "forcegauge"
DATASOURCE = "forcegauge-prometheus"
INTERVAL = "1m"


def provisioned(places: Places, datasource: str = DATASOURCE) -> Json:
    """A provisioning file; ``datasource`` is the uid of the Prometheus that is asked."""
    return {"apiVersion": 1, "groups": grafana_groups(places, datasource)}


def grafana_groups(places: Places | None = None, datasource: str = DATASOURCE) -> list[Json]:
    """The groups of that file."""
    where = places or Places()
    return [
        {
            "orgId": 1,
            "name": name,
            "folder": FOLDER,
            "interval": INTERVAL,
            "rules": [_rule(alert, where, datasource) for alert in rows],
        }
        for name, rows in GROUPS.items()
    ]


def uid(alert: Alert) -> str:
    """The rule's fixed uid, such as ``forcegauge-probe-stale``."""
    words = re.findall("[A-Z][a-z]+", alert.name.removeprefix("ForceGauge"))
    return "-".join(["forcegauge", *map(str.lower, words)])


def _rule(alert: Alert, places: Places, datasource: str) -> Json:
    queries = {"A": alert.expr} | {
        name: _asked(alert, figure) for name, figure in alert.figures.items()
    }
    data = [_query(name, expr, datasource) for name, expr in queries.items()]
    return {
        "uid": uid(alert),
        "title": alert.name,
        "condition": "C",
        "data": [*data, _CONDITION],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.wait or "0s",
        **({"keepFiringFor": alert.keep} if alert.keep else {}),
        "labels": {"severity": alert.severity},
        "annotations": told_with(alert, places, _description(alert)),
    }


def _asked(alert: Alert, figure: Figure) -> str:
    selector = f"{figure.metric}{{{figure.matchers}}}" if figure.matchers else figure.metric
    return by(alert.labels, held(selector, figure.over))


def _query(name: str, expr: str, datasource: str) -> Json:
    model = {
        "refId": name,
        "datasource": {"type": "prometheus", "uid": datasource},
        "editorMode": "code",
        "expr": expr,
        "instant": True,
        "range": False,
        "intervalMs": 1000,
        "maxDataPoints": 43200,
    }
    span = {"from": 600, "to": 0}
    return {"refId": name, "relativeTimeRange": span, "datasourceUid": datasource, "model": model}


_CONDITION: Json = {
    "refId": "C",
    "relativeTimeRange": {"from": 0, "to": 0},
    "datasourceUid": "__expr__",
    "model": {
        "refId": "C",
        "datasource": {"type": "__expr__", "uid": "__expr__"},
        "type": "threshold",
        "expression": "A",
        # an expression has series where the alert fires and nowhere else, with values above 0
        "conditions": [{"evaluator": {"type": "gt", "params": [0]}}],
    },
}


def _description(alert: Alert) -> str:
    figures = {
        name: f"{{{{ with $values.{name} }}}}{{{{ .Value | {FORMS[figure.form]} }}}}"
        "{{ else }}unknown{{ end }}"
        for name, figure in alert.figures.items()
    }
    now = f"{{{{ $values.A.Value | {FORMS[alert.form]} }}}}"
    kind = "$values" if alert.known in figures else "$labels"
    return described(alert, now, figures, f"{kind}.{alert.known}")
