from __future__ import annotations

from typing import Any

import pytest

from forcegauge_monitor.differences import differences, pruned

FIRST = {"title": "First", "unit": "nats"}
SECOND = {"title": "Second", "unit": "nats"}


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["-a.b: 1", "+a.b: 2"]),
        ({"a": 1}, {"b": 1}, ["-a: 1", "+b: 1"]),
        ({"a": [1, 2]}, {"a": [1]}, ["-a[1]: 2"]),
        ({"a": [1]}, {"a": "1"}, ["-a: [1]", '+a: "1"']),
        ({"a": None}, {}, ["-a: null"]),
        ([{"title": "Ä"}], [{"title": "Ä", "b": "é"}], ['+[Ä].b: "é"']),
        ([FIRST, FIRST], [FIRST, SECOND], ['-[1].title: "First"', '+[1].title: "Second"']),
        ([FIRST, SECOND], [SECOND, FIRST], ["+: in another order"]),
    ],
)
def test_each_line_names_its_whole_path(before: Any, after: Any, lines: list[str]) -> None:
    assert differences(before, after) == lines


def test_what_is_put_before_others_is_one_line_and_they_are_none() -> None:
    panel = {"title": "New", "expr": "x" * 500}
    [line] = differences({"panels": [FIRST]}, {"panels": [panel, FIRST]})
    assert line.startswith('+panels[New]: {"title": "New"')
    assert len(line) < 200


def test_a_long_text_is_told_whole() -> None:
    old, new = "x" * 500, "x" * 500 + "y"
    assert differences(old, new) == [f'-: "{old}"', f'+: "{new}"']


def test_pruned_leaves_what_the_other_has() -> None:
    value = {"a": {"b": 1, "c": 2}, "d": [{"e": 1, "f": 2}], "g": [1, 2]}
    like = {"a": {"b": 0}, "d": [{"e": 0}], "g": [0], "h": 0}
    assert pruned(value, like) == {"a": {"b": 1}, "d": [{"e": 1}], "g": [1, 2]}
