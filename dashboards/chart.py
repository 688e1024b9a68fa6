"""What the Helm chart carries of what is generated: dashboards, and the rules of an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FILES = ROOT.parent / "helm" / "forcegauge" / "files"


def copies(made: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    """The chart's copies, of the generated files that they are copies of."""
    for path, text in made.items():
        if path.parent == ROOT / "grafana":
            yield FILES / "dashboards" / path.name, text
    yield FILES / "rules.yaml", made[ROOT / "rules" / "forcegauge.rules.yaml"]
