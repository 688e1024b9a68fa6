"""The values are a contract: documented, closed, and what does not fit is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dashboards.chart_readme import Key, Schema, keys, resolved, schema
from tests.helm.charts import CHART, HELMS, with_values

ALL = list(keys()) if (CHART / "values.yaml").exists() else []
LEAVES = [key for key in ALL if not key.whole]
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("key", ALL, ids=lambda key: key.path)
def test_a_comment_that_starts_with_its_name_tells_what_a_key_is(key: Key) -> None:
    first, *others = key.comment.split()
    assert first.rstrip(":,") in (key.path, key.path.rpartition(".")[2])
    assert others


def objects(part: Schema, value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path, schema and default of every object whose keys the schema knows."""
    mine = resolved(part)
    if "properties" not in mine or not isinstance(value, dict):
        return
    yield path, mine, value
    for name, inner in mine["properties"].items():
        yield from objects(inner, value.get(name), (*path, name))


OBJECTS = list(objects(schema(), VALUES))


@pytest.mark.parametrize(("path", "part", "value"), OBJECTS, ids=lambda part: str(part)[:40])
def test_the_schema_knows_the_keys_of_the_values_and_no_other(
    path: tuple[str, ...], part: Schema, value: dict[str, Any]
) -> None:
    assert part["additionalProperties"] is False
    assert set(part["properties"]) - {"global"} == set(value) - {"global"}


def test_the_defaults_fit_the_schema() -> None:
    jsonschema.Draft7Validator(schema()).validate(VALUES)


def test_a_default_that_the_schema_tells_is_that_of_the_values() -> None:
    assert [key.path for key in ALL if key.schema.get("default", key.default) != key.default] == []


def wrong(part: Schema) -> Any:
    """A value that is not of the type."""
    validator = jsonschema.Draft7Validator({**part, "$defs": schema().get("$defs", {})})
    tried: tuple[Any, ...] = (7.5, "no such", [[]], {"no": "such"}, True)
    return next(each for each in tried if not validator.is_valid(each))


def nested(path: str, value: Any, into: dict[str, Any]) -> None:
    """Set a value at a path with dots."""
    *above, name = path.split(".")
    for part in above:
        into = into.setdefault(part, {})
    into[name] = value


def told(helm: str, path: str) -> str:
    """How a Helm names the key that is wrong."""
    return f"- {path}: " if helm == "helm3" else f"- at '/{path.replace('.', '/')}'"


@pytest.mark.parametrize("helm", HELMS)
def test_every_wrong_type_is_refused_and_named(helm: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    for key in LEAVES:
        nested(key.path, wrong(key.schema), given)
    answer = with_values(helm, given, tmp_path)
    assert answer.code == 1
    assert [key.path for key in LEAVES if told(helm, key.path) not in answer.error] == []


@pytest.mark.parametrize("helm", HELMS)
def test_every_unknown_key_is_refused_and_named(helm: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    for path, _, _ in OBJECTS:
        nested(".".join((*path, f"unknown-{'-'.join(path)}")), 1, given)
    answer = with_values(helm, given, tmp_path)
    assert answer.code == 1
    said = set(re.findall(r"\bunknown-[\w-]*", answer.error))
    assert said == {f"unknown-{'-'.join(path)}" for path, _, _ in OBJECTS}
