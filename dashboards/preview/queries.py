"""The queries of a dashboard as Grafana would send them: its panels, variables, steps.

What Grafana does is in its Prometheus data source (interpolation, intervals); only what classic
dashboards need is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]
Chosen = Mapping[str, str | Sequence[str]]
"""By variable one value, several, or `ALL`."""

ALL = "$__all"
PIXELS = 720
"""How wide a panel is, roughly."""
FOLDER = Path(__file__).resolve().parent.parent / "grafana"
_SPECIAL = re.compile(r"[\\^$*+?.()|{}\[\]/'\"]")
_VARIABLE = re.compile(r"\$\{(\w+)(?::(\w+))?\}|\$(\w+)|\[\[(\w+)\]\]")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class View:
    """What is looked at: a stretch of time in Unix seconds, the data source's scrape interval, and
    what is chosen for the variables. ``options`` holds by variable all values, or the expression
    that stands for all of them."""

    begin: int
    end: int
    spacing: int
    chosen: Chosen
    options: Mapping[str, Sequence[str] | str]


@dataclass(frozen=True)
class Query:
    """One query of a panel: to be asked at one moment, or over the view every ``step`` seconds."""

    panel: str
    panel_id: int
    ref: str
    promql: str
    instant: bool
    step: int
    target: Json

    @property
    def key(self) -> str:
        """Its name within the dashboard."""
        return f"{self.panel_id}{self.ref}{'i' if self.instant else 'r'}"


def dashboards() -> dict[str, Json]:
    """The committed dashboards by file name without its ending."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: Json) -> Iterator[Json]:
    """All panels but rows, those inside rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def laid_out(dashboard: Json) -> list[Json]:
    """Rows and panels in their places, with what is inside collapsed rows unfolded."""
    found: list[Json] = []
    lower = 0
    for panel in sorted(dashboard["panels"], key=lambda each: int(each["gridPos"]["y"])):
        found.append(_lowered(panel, lower))
        inner = panel.get("panels") or ()
        found += [_lowered(each, lower) for each in inner]
        top = panel["gridPos"]["y"] + 1
        lower += max((_bottom(each) - top for each in inner), default=0)
    return found


def _bottom(panel: Json) -> int:
    return int(panel["gridPos"]["y"] + panel["gridPos"]["h"])


def _lowered(panel: Json, rows: int) -> Json:
    place = panel["gridPos"]
    return {**panel, "gridPos": {**place, "y": place["y"] + rows}}


def variables(dashboard: Json) -> list[Json]:
    """Variables in their order."""
    found: list[Json] = dashboard.get("templating", {}).get("list", [])
    return found


def choice(dashboard: Json, runs: Sequence[str]) -> Chosen:
    """These runs, or the first where one alone can be chosen; of the rest all there is."""
    chosen: dict[str, str | Sequence[str]] = {}
    for variable in variables(dashboard):
        name = variable["name"]
        if name == "run":
            chosen[name] = runs if variable.get("multi") else runs[0]
        elif variable["type"] == "query":
            chosen[name] = ALL
        else:
            chosen[name] = str(variable["query"])
    return chosen


def queries(dashboard: Json, view: View) -> Iterator[Query]:
    """Every query of every panel; one that is asked both ways comes twice."""
    for panel in panels(dashboard):
        for target in panel.get("targets") or ():
            if "expr" not in target:
                continue
            step = _step(panel, target, view)
            promql = interpolated(target["expr"], view, step)
            facts = (panel.get("title", ""), panel["id"], target["refId"], promql)
            if target.get("instant"):
                yield Query(*facts, True, step, target)
            if target.get("range") or not target.get("instant"):
                yield Query(*facts, False, step, target)


def _step(panel: Json, target: Json, view: View) -> int:
    """Seconds between two points: as many points as pixels, unless the panel asks for fewer."""
    asked = seconds(target.get("interval") or panel.get("interval") or "0s")
    return max(asked, (view.end - view.begin) // PIXELS)


def seconds(text: str) -> int:
    """Seconds of a duration such as ``1m``; Grafana's lower bounds such as ``>1m`` too."""
    number, unit = re.fullmatch(r">?(\d+)(ms|[smhdw])", text).groups()  # type: ignore[union-attr]
    return int(int(number) * _UNITS[unit])


def text_of(chosen: str | Sequence[str]) -> str:
    """What stands in the dashboard's head for a choice."""
    if chosen == ALL:
        return "All"
    return chosen if isinstance(chosen, str) else " + ".join(chosen)


def interpolated(text: str, view: View, step: int = 60) -> str:
    """A text with its variables replaced as in a PromQL query."""
    span, rate = view.end - view.begin, max(step + view.spacing, 4 * view.spacing)
    known = {
        "__interval": f"{step}s",
        "__interval_ms": str(step * 1000),
        "__rate_interval": f"{rate}s",
        "__range": f"{span}s",
        "__range_s": str(span),
        "__range_ms": str(span * 1000),
    }

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3] or match[4]
        if name in known:
            return known[name]
        return _value(view, name, match[2]) if name in view.chosen else match[0]

    return _VARIABLE.sub(value, text)


def _value(view: View, name: str, form: str | None) -> str:
    chosen = view.chosen[name]
    if form == "text":
        return (
            "All" if chosen == ALL else ", ".join([chosen] if isinstance(chosen, str) else chosen)
        )
    if chosen == ALL:
        chosen = view.options[name]
        if isinstance(chosen, str):
            return chosen
    if isinstance(chosen, str):
        return chosen if form == "raw" else chosen.replace("\\", "\\\\").replace('"', '\\"')
    escaped = [_SPECIAL.sub(lambda found: "\\\\" + found[0], each) for each in chosen]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
