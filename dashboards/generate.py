"""What is generated, and where it goes: one list of files for the command and its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dashboards.compare import compare
from dashboards.fleet import fleet
from dashboards.frame import written
from dashboards.operations import operations
from dashboards.run import run
from dashboards.snapshots import snapshots

DASHBOARDS = (fleet, run, snapshots, compare, operations)

ROOT = Path(__file__).resolve().parent
SHIPPED = ROOT.parent / "monitor" / "forcegauge_monitor" / "data"
"""Data of the wheel: the copies that the monitor serves and applies."""

Files = dict[Path, str]
"""Texts by the file that holds them."""


def generated() -> Files:
    """Every generated file as it should be."""
    return dict(_files())


def _files() -> Iterator[tuple[Path, str]]:
    yield from _dashboards()


def _dashboards() -> Iterator[tuple[Path, str]]:
    for made in DASHBOARDS:
        name = f"{made.__name__}.json"
        text = written(made())
        yield ROOT / "grafana" / name, text
        yield SHIPPED / "dashboards" / name, text


def write_all() -> None:
    """Write every generated file that differs."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
