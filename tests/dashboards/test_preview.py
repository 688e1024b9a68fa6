"""Queries of dashboards as Grafana would send them, and drawings as the preview lays them out."""

from __future__ import annotations

from typing import Any

import pytest

from dashboards.preview.answers import canonical
from dashboards.preview.queries import (
    ALL,
    View,
    choice,
    interpolated,
    laid_out,
    panels,
    queries,
    seconds,
)

VIEW = View(
    begin=0,
    end=86400,
    spacing=60,
    chosen={"run": ["a.1", "b"], "one": 'say "hi"', "cluster": ALL, "place": ALL},
    options={"cluster": ".*", "place": ["x", "y"]},
)


def panel(number: int, y: int, h: int = 2, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": "stat", "gridPos": {"x": 0, "y": y, "w": 24, "h": h}, **more}


@pytest.mark.parametrize(
    ("text", "promql"),
    [
        ('m{run=~"$run"}', 'm{run=~"(a\\\\.1|b)"}'),
        ('m{run=~"${run:regex}"}', 'm{run=~"(a\\\\.1|b)"}'),
        ('m{run="[[one]]"}', 'm{run="say \\"hi\\""}'),
        ('m{cluster=~"$cluster"}', 'm{cluster=~".*"}'),
        ('m{place=~"$place"}', 'm{place=~"(x|y)"}'),
        ("rate(m[$__rate_interval])", "rate(m[240s])"),
        ("max_over_time(m[$__range:$__interval])", "max_over_time(m[86400s:30s])"),
        ("label_replace(m, 'a', '$1', 'b', '(.*)')", "label_replace(m, 'a', '$1', 'b', '(.*)')"),
    ],
)
def test_variables_become_what_grafana_makes_of_them(text: str, promql: str) -> None:
    assert interpolated(text, VIEW, step=30) == promql


def test_a_single_value_of_several_stands_without_brackets() -> None:
    one = View(0, 60, 15, {"run": ["a.1"]}, {})
    assert interpolated('m{run=~"$run"}', one) == 'm{run=~"a\\\\.1"}'


@pytest.mark.parametrize(("text", "value"), [("1m", 60), (">2h", 7200), ("500ms", 0), ("15s", 15)])
def test_durations(text: str, value: int) -> None:
    assert seconds(text) == value


def test_a_query_that_is_asked_both_ways_comes_twice() -> None:
    target = {"refId": "A", "expr": "m", "instant": True, "range": True}
    dashboard = {"panels": [panel(1, 0, targets=[target], interval="5m")]}
    found = list(queries(dashboard, VIEW))
    assert [query.key for query in found] == ["1Ai", "1Ar"]
    assert {query.step for query in found} == {300}


def test_without_a_wish_a_graph_has_a_point_a_pixel() -> None:
    dashboard = {"panels": [panel(1, 0, targets=[{"refId": "A", "expr": "m"}])]}
    assert [query.step for query in queries(dashboard, VIEW)] == [120]


def test_what_a_collapsed_row_holds_is_unfolded_and_the_rest_moves_down() -> None:
    row = panel(2, 2, 1, type="row", panels=[panel(3, 3), panel(4, 5)])
    dashboard = {"panels": [panel(1, 0), row, panel(5, 3, 1, type="row"), panel(6, 4)]}
    places = [(each["id"], each["gridPos"]["y"]) for each in laid_out(dashboard)]
    assert places == [(1, 0), (2, 2), (3, 3), (4, 5), (5, 7), (6, 8)]
    assert [each["id"] for each in panels(dashboard)] == [1, 3, 4, 6]


def test_one_run_is_chosen_where_one_can_be() -> None:
    run, base = {"name": "run", "type": "query"}, {"name": "b", "type": "textbox", "query": "u"}
    place = {"name": "cluster", "type": "query"}
    one = {"templating": {"list": [place, run, base]}}
    assert choice(one, ["a", "b"]) == {"cluster": ALL, "run": "a", "b": "u"}
    many = {"templating": {"list": [{**run, "multi": True}]}}
    assert choice(many, ["a", "b"]) == {"run": ["a", "b"]}


def test_the_order_of_series_changes_no_hash() -> None:
    one, two = ({"labels": {"run": name}, "points": [[0, "1"]]} for name in "ab")
    assert canonical({"1Ar": [one, two]}) == canonical({"1Ar": [two, one]})
    assert canonical({"1Ar": [one]}) != canonical({"1Ar": [two]})
