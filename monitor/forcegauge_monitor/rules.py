"""The table of alerts as rules of Prometheus: a rule file, or a PrometheusRule for its operator.

Rules that Grafana evaluates are in `grafana_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from forcegauge_monitor.alert import OF_A_RUN, Alert, Figure, by, held
from forcegauge_monitor.alert_texts import FORMS, GROUPS, Json, Places, described, told_with
from forcegauge_monitor.grafana_rules import grafana_groups as grafana_groups

_STREAK, _NEEDED = held("forcegauge_alarm_streak"), held("forcegauge_alarm_streak_needed")

RECORDS = {
    "run:forcegauge_run_state:max": by((*OF_A_RUN, "state"), held("forcegauge_run_state")),
    "run:forcegauge_alarm_on:max": by((*OF_A_RUN, "alarm"), f"{_STREAK} >= bool {_NEEDED}"),
    "run:forcegauge_squeeze_nats:max": by(OF_A_RUN, held("forcegauge_squeeze_nats")),
    "run:forcegauge_probe_step:max": by(OF_A_RUN, held("forcegauge_probe_step")),
}
"""What to keep for long or to federate: 17 series of a run, whichever process it ran in."""


def prometheus(places: Places) -> Json:
    """A rule file."""
    records = [{"record": name, "expr": expr} for name, expr in RECORDS.items()]
    alerts = [
        {"name": name, "rules": [_rule(alert, places) for alert in rows]}
        for name, rows in GROUPS.items()
    ]
    return {"groups": [{"name": "forcegauge.records", "rules": records}, *alerts]}


def operator(places: Places, namespace: str = "", labels: Mapping[str, str] | None = None) -> Json:
    """A PrometheusRule; ``labels`` are those by which a Prometheus selects it."""
    metadata: Json = {"name": "forcegauge"}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(labels)
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    return {**kind, "metadata": metadata, "spec": prometheus(places)}


def written(rules: Json) -> str:
    """Rules as YAML, expressions as blocks that can be read."""
    return yaml.dump(rules, Dumper=_Dumper, sort_keys=False, width=1 << 16, allow_unicode=True)


def _rule(alert: Alert, places: Places) -> Json:
    times = {"for": alert.wait, "keep_firing_for": alert.keep}
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **{name: time for name, time in times.items() if time},
        "labels": {"severity": alert.severity},
        "annotations": told_with(alert, places, _description(alert)),
    }


def _description(alert: Alert) -> str:
    figures = {
        name: f"{{{{ with $its_{name} }}}}{{{{ . | first | value | {FORMS[figure.form]} }}}}"
        "{{ else }}unknown{{ end }}"
        for name, figure in alert.figures.items()
    }
    now = f"{{{{ $value | {FORMS[alert.form]} }}}}"
    there = f"$its_{alert.known}" if alert.known in figures else f"$labels.{alert.known}"
    return _questions(alert) + described(alert, now, figures, there)


def _questions(alert: Alert) -> str:
    """Lines of a template that ask Prometheus for the figures of the alert at hand."""
    if not alert.figures:
        return ""
    matchers = ",".join(f"{name}=%q" for name in alert.labels)
    values = " ".join(f"$labels.{name}" for name in alert.labels)
    lines = [f"{{{{- $its := printf `{matchers}` {values} -}}}}"]
    lines += [_question(name, figure) for name, figure in alert.figures.items()]
    return "".join(f"{line}\n" for line in lines)


def _question(name: str, figure: Figure) -> str:
    selector = f"{figure.metric}{{{','.join(filter(None, [figure.matchers, '%s']))}}}"
    return f"{{{{- $its_{name} := printf `max({held(selector, figure.over)})` $its | query -}}}}"


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as blocks."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)
