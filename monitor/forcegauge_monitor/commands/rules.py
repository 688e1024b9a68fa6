"""`forcegauge monitor rules`: the rules for Prometheus, its operator or Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forcegauge.errors import InputError, RunError

ONLY = {"namespace": "operator", "label": "operator", "datasource": "grafana"}


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["prometheus", "operator", "grafana"]),
    default="prometheus",
    show_default=True,
    help="A rule file, a PrometheusRule, or a file for Grafana's alert provisioning.",
)
@click.option("--runbooks", metavar="URL", help="Of the pages.  [default: the monitor's own]")
@click.option("--grafana", metavar="URL", help="Of the dashboards.  [default: on this machine]")
@click.option("--namespace", metavar="NAME", help="With operator: of the PrometheusRule.")
@click.option(
    "--label",
    multiple=True,
    metavar="NAME=VALUE",
    help="With operator: what Prometheus selects it by.",
)
@click.option("--datasource", metavar="UID", help="With grafana: the Prometheus that is asked.")
@click.option("-o", "--output", metavar="FILE", help="Write them there.  [default: print them]")
def rules(form: str, output: str | None, **given: Any) -> None:
    """Print the recording and alerting rules."""
    for name, value in given.items():
        if value and ONLY.get(name, form) != form:
            raise InputError(f"is for --format {ONLY[name]} only", field=f"--{name}")
    text = _text(form, given)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output} cannot be written ({error.strerror}).") from None


def _text(form: str, given: dict[str, Any]) -> str:
    from forcegauge_monitor.alert_texts import GRAFANA, RUNBOOKS, Places
    from forcegauge_monitor.grafana_rules import DATASOURCE, provisioned
    from forcegauge_monitor.rules import operator, prometheus, written

    places = Places(given["runbooks"] or RUNBOOKS, given["grafana"] or GRAFANA)
    if form == "operator":
        return written(operator(places, given["namespace"] or "", _labels(given["label"])))
    if form == "grafana":
        return written(provisioned(places, given["datasource"] or DATASOURCE))
    return written(prometheus(places))


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    for text in given:
        if "=" not in text:
            raise InputError(f"'{text}' is no label", field="--label", fix="Write NAME=VALUE")
    return dict(text.split("=", 1) for text in given)
