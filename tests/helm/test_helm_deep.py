"""The values are a contract: documented, closed, and what does not fit is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from dashboards.chart_readme import Key, Schema, keys, resolved, schema
from tests.helm.charts import CHART, HELMS, parsed, with_values
from tests.helm.drawn import few_values, nested
from tests.helm.schemas import VERSIONS, problems

KEYS = list(keys())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_comment_that_starts_with_its_name_tells_what_a_key_is(key: Key) -> None:
    first, *others = key.comment.split()
    assert first.rstrip(":,") in (key.path, key.path.rpartition(".")[2])
    assert others


def objects(part: Schema, value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path, schema and default of every object whose keys the schema knows."""
    mine = resolved(part)
    if not isinstance(value, dict):
        return
    more = mine.get("additionalProperties")
    names = mine.get("properties", dict.fromkeys(value, more) if isinstance(more, dict) else {})
    if "properties" in mine:
        yield path, mine, value
    for name, inner in names.items():
        yield from objects(inner, value.get(name), (*path, name))


OBJECTS = list(objects(schema(), VALUES))

POD = {*VALUES["podDefaults"], "image", "resources"}
POOL = {*POD, *VALUES["workerDefaults"]}

BESIDE = {
    **dict.fromkeys(("api", "beat", "redis"), POD),
    **dict.fromkeys(("workerDefaults", "workers.cpu", "workers.gpu"), POOL),
    "workers.gpu.image": {*VALUES["image"]},
    "": {"global"},
}
"""Keys that an object may have beside those of values.yaml, which has them elsewhere."""


@pytest.mark.parametrize(("path", "part", "value"), OBJECTS, ids=lambda part: str(part)[:40])
def test_the_schema_knows_the_keys_of_the_values_and_no_other(
    path: tuple[str, ...], part: Schema, value: dict[str, Any]
) -> None:
    assert part["additionalProperties"] is False
    beside = BESIDE.get(".".join(path), set())
    assert set(value) <= set(part["properties"]) <= set(value) | beside


def test_the_defaults_fit_the_schema() -> None:
    jsonschema.Draft7Validator(schema()).validate(VALUES)


def test_a_default_that_the_schema_tells_is_that_of_the_values() -> None:
    assert [key.path for key in KEYS if key.schema.get("default", key.default) != key.default] == []


def wrong(part: Schema) -> Any:
    """A value that is not of the type."""
    validator = jsonschema.Draft7Validator({**part, "$defs": schema().get("$defs", {})})
    tried: tuple[Any, ...] = (7.5, "no such", [[]], {"no": "such"}, True)
    return next(each for each in tried if not validator.is_valid(each))


def told(helm: str, path: str) -> str:
    """How a Helm names the key that is wrong."""
    return f"- {path}: " if helm == "helm3" else f"- at '/{path.replace('.', '/')}'"


@pytest.mark.parametrize("helm", HELMS)
def test_every_wrong_type_is_refused_and_named(helm: str, tmp_path: Path) -> None:
    values = nested({key.path: wrong(key.schema) for key in KEYS})
    answer = with_values(helm, values, tmp_path)
    assert answer.code == 1
    assert [key.path for key in KEYS if told(helm, key.path) not in answer.error] == []


@pytest.mark.parametrize("helm", HELMS)
def test_every_unknown_key_is_refused_and_named(helm: str, tmp_path: Path) -> None:
    unknown = {path: f"unknown-{'-'.join(path)}" for path, _, _ in OBJECTS}
    values = nested({".".join((*path, name)): 1 for path, name in unknown.items()})
    answer = with_values(helm, values, tmp_path)
    assert answer.code == 1
    said = set(re.findall(r"\bunknown-[\w-]*", answer.error))
    assert said == set(unknown.values())


OWN_WORDS = r"execution error at \(|values don't meet the specifications of the schema"
"""Of refusals by the chart's own words or its schema's, unlike errors of templates and YAML."""


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=few_values())
def test_random_values_render_to_valid_manifests_or_are_refused_with_the_reason(
    values: dict[str, Any], tmp_path: Path
) -> None:
    answer = with_values("helm4", values, tmp_path)
    if answer.code:
        assert re.search(OWN_WORDS, answer.error), answer.error
        return
    assert [fault for each in parsed(answer.out) for fault in problems(each, VERSIONS[-1])] == []
