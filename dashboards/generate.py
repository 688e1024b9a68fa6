"""What is generated, and where it goes: one list of files for the command and its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dashboards.books import pages
from dashboards.chart import copies
from dashboards.chart_readme import CHART, readme
from dashboards.compare import compare
from dashboards.fleet import fleet
from dashboards.frame import written
from dashboards.operations import operations
from dashboards.run import run
from dashboards.snapshots import snapshots
from forcegauge_monitor.alert_texts import Places
from forcegauge_monitor.grafana_rules import provisioned
from forcegauge_monitor.rules import operator, prometheus
from forcegauge_monitor.rules import written as in_yaml

DASHBOARDS = (fleet, run, snapshots, compare, operations)

ROOT = Path(__file__).resolve().parent
SHIPPED = ROOT.parent / "monitor" / "forcegauge_monitor" / "data"
"""Data of the wheel: the copies that the monitor serves and applies."""

Files = dict[Path, str]
"""Texts by the file that holds them."""


def generated() -> Files:
    """Every generated file as it should be."""
    made = dict(_files())
    return {**made, **dict(copies(made))}


def _files() -> Iterator[tuple[Path, str]]:
    yield from _dashboards()
    yield from _rules()
    yield from pages(ROOT / "runbooks", SHIPPED / "runbooks")
    yield CHART / "README.md", readme()


def _dashboards() -> Iterator[tuple[Path, str]]:
    for made in DASHBOARDS:
        name = f"{made.__name__}.json"
        text = written(made())
        yield ROOT / "grafana" / name, text
        yield SHIPPED / "dashboards" / name, text


def _rules() -> Iterator[tuple[Path, str]]:
    places = Places()
    rules = {
        "rules": prometheus(places),
        "prometheusrule": operator(places),
        "grafana": provisioned(places),
    }
    for name, made in rules.items():
        yield ROOT / "rules" / f"forcegauge.{name}.yaml", in_yaml(made)


def write_all() -> None:
    """Write every generated file that differs."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
