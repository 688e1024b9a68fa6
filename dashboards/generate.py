"""What is generated, and where it goes: one list of files for the command and its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SHIPPED = ROOT.parent / "monitor" / "forcegauge_monitor" / "data"
"""Data of the wheel: the copies that the monitor serves and applies."""

Files = dict[Path, str]
"""Texts by the file that holds them."""


def generated() -> Files:
    """Every generated file as it should be."""
    return dict(_files())


def _files() -> Iterator[tuple[Path, str]]:
    yield from ()


def write_all() -> None:
    """Write every generated file that differs."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
