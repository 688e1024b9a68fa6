"""Prometheus' answers to a dashboard's queries, in one canonical form."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dashboards.preview.queries import (
    Chosen,
    Json,
    Query,
    View,
    choice,
    interpolated,
    queries,
    variables,
)
from dashboards.preview.stamp import digest

Series = dict[str, Any]
"""``labels`` and ``points``, pairs of Unix seconds and text."""

Options = dict[str, Sequence[str] | str]

DIGITS, NOTHING = 10, 1e-9
"""Significant digits that are kept, and what counts as 0: the last bits of a sum differ between
versions of Prometheus."""


class RefusedError(Exception):
    """Prometheus said no to a query, and why."""


def ask(url: str, path: str, **parameters: Any) -> Any:
    """The data of one answer of Prometheus' HTTP API; raises `RefusedError`."""
    return json.loads(_fetched(url, path, parameters))["data"]


def _fetched(url: str, path: str, parameters: Mapping[str, Any]) -> bytes:
    query = urllib.parse.urlencode(parameters, doseq=True)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=60) as page:
            found: bytes = page.read()
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise RefusedError(f"{parameters}: {error.read().decode()}") from None


def _asked(query: Query, view: View) -> tuple[str, dict[str, Any]]:
    if query.instant:
        return "query", {"query": query.promql, "time": view.end}
    # Grafana aligns both ends with the step
    ends = {"start": view.begin // query.step * query.step, "end": view.end}
    return "query_range", {"query": query.promql, "step": query.step, **ends}


def answer(url: str, query: Query, view: View) -> list[Series]:
    """The series that a query brings; raises `RefusedError`."""
    path, parameters = _asked(query, view)
    data = ask(url, path, **parameters)
    if data["resultType"] == "scalar":
        return [{"labels": {}, "points": [_point(*data["result"])]}]
    return [
        {"labels": row["metric"], "points": [_point(*each) for each in _pairs(row)]}
        for row in data["result"]
    ]


def seconds_of(url: str, query: Query, view: View) -> float:
    """How long Prometheus takes to answer."""
    start = time.perf_counter()
    _fetched(url, *_asked(query, view))
    return time.perf_counter() - start


def _pairs(row: Json) -> list[list[Any]]:
    found: list[list[Any]] = row["values"] if "values" in row else [row["value"]]
    return found


def _point(moment: float, value: str) -> list[Any]:
    number = float(value)
    return [moment, f"{0.0 if abs(number) < NOTHING else number:.{DIGITS}g}"]


def options(url: str, dashboard: Json, view: View) -> Options:
    """What `ALL` means for each variable, asked in their order as Grafana does."""
    found: Options = {}
    for variable in variables(dashboard):
        if variable["type"] == "query":
            values = variable_values(url, variable, replace(view, options=found))
            found[variable["name"]] = variable.get("allValue") or values
    return found


def variable_values(url: str, variable: Json, view: View) -> list[str]:
    """What ``label_values(selector, label)`` of a variable brings; raises `RefusedError`."""
    asked = variable["query"]
    text = asked if isinstance(asked, str) else asked["query"]
    inside = interpolated(text, view).removeprefix("label_values(").removesuffix(")")
    selector, _, label = (part.strip() for part in inside.rpartition(","))
    ends = {"start": view.begin, "end": view.end}
    matching = {"match[]": selector} if selector else {}
    values: list[str] = ask(url, f"label/{label}/values", **matching, **ends)
    return values


@dataclass(frozen=True)
class Filled:
    """A dashboard with what is chosen and the answers to its queries, by their keys."""

    dashboard: Json
    view: View
    answers: Mapping[str, list[Series]]

    @property
    def stamps(self) -> dict[str, str]:
        """What a picture of it is drawn from."""
        text = json.dumps(self.dashboard, sort_keys=True)
        return {"dashboard": digest(text), "results": digest(canonical(self.answers))}


def filled(url: str, dashboard: Json, runs: Sequence[str], window: tuple[int, int, int]) -> Filled:
    """Ask all queries of a dashboard for some runs, over a window as in `View`."""
    view = view_of(url, dashboard, choice(dashboard, runs), window)
    answers = {query.key: answer(url, query, view) for query in queries(dashboard, view)}
    return Filled(dashboard, view, answers)


def view_of(url: str, dashboard: Json, chosen: Chosen, window: tuple[int, int, int]) -> View:
    """The window with these choices, and with what `ALL` means in them."""
    empty = View(*window, chosen, {})
    return replace(empty, options=options(url, dashboard, empty))


def canonical(answers: Mapping[str, list[Series]]) -> str:
    """Answers by panel and query as one text, the same whatever the order of series."""
    ordered = {
        key: sorted(json.dumps(each, sort_keys=True) for each in found)
        for key, found in sorted(answers.items())
    }
    return json.dumps(ordered)
