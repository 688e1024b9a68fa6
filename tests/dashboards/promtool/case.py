"""What a rule is tried on: series over time, and what fires when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Labels = dict[str, str]

RUN = {"run": "r", "cluster": "c1", "namespace": "n"}
AGENT = RUN | {"job": "agents", "instance": "a:9790"}
AGAIN = AGENT | {"instance": "b:9790"}
"""The same run in another process."""

TWIN = AGENT | {"cluster": "c2"}
"""A run of the same name in another cluster, at the same address there."""

OF_TWIN = RUN | {"cluster": "c2"}
MONITOR = {"job": "monitor", "instance": "m:8790", "namespace": "fg"}
"""A monitor; runs of all clusters may be known to it."""

GONE = "stale"


@dataclass(frozen=True)
class Case:
    """``series`` by name and labels, one value each ``every``; ``fires`` by time: the labels of
    each alert that fires then, without name and severity."""

    says: str
    series: Mapping[str, str]
    fires: Mapping[str, tuple[Labels, ...]]
    every: str = "1m"


def named(name: str, labels: Mapping[str, str] | None = None, **more: str) -> str:
    """A series of forcegauge in promtool's notation."""
    return f"forcegauge_{name}{_matchers({**(labels or {}), **more})}"


def up(labels: Mapping[str, str]) -> str:
    """Whether the target of these labels was reached."""
    return "up" + _matchers({key: text for key, text in labels.items() if key != "run"})


def _matchers(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{text}"' for key, text in labels.items()) + "}"


def values(*parts: tuple[float, int] | str) -> str:
    """Values in promtool's notation, of pairs (value, how often); text stands as it is."""
    return " ".join(
        part if isinstance(part, str) else f"{part[0]:g}+0x{part[1] - 1}" for part in parts
    )


def missing(count: int) -> str:
    """Scrapes that failed: Prometheus marks the series as stale at the first."""
    return f"stale _x{count - 1}" if count > 1 else "stale"
