"""The chart's table of values, from the comments of values.yaml and its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "helm" / "forcegauge"
BLOCK = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- /values -->)", re.DOTALL)

Schema = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of values.yaml whose own keys, if it has any, the schema does not know.

    Attributes:
        path: with dots, from the root.
        comment: the text of the comment above it, empty where there is none.
        schema: what its value may be.
        default: its value in values.yaml.
    """

    path: str
    comment: str
    schema: Schema
    default: Any


def readme() -> str:
    """The chart's README.md, its block of values written anew."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    return BLOCK.sub(lambda _: table(), text)


def table() -> str:
    """One row for each key: what it is, of which type, and what it is unless given."""
    rows = ["| value | type | default |", "|---|---|---|"]
    rows += [_row(key) for key in keys()]
    return "\n".join(rows) + "\n"


def _row(key: Key) -> str:
    default = f"`{json.dumps(key.default, ensure_ascii=False)}`"
    what = key.comment.replace(key.path, f"`{key.path}`", 1)
    cells = (what, _type(key.schema), default)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    for name in ("oneOf", "anyOf"):
        if name in schema and "type" not in schema:
            return " or ".join(dict.fromkeys(_type(resolved(part)) for part in schema[name]))
    found = schema.get("type", "any")
    return found if isinstance(found, str) else " or ".join(found)


def keys() -> Iterator[Key]:
    """Every key of values.yaml in its order; raises `KeyError` for one that has no schema."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _keys(root, schema(), "", text.splitlines())


@cache
def schema() -> Schema:
    """The chart's schema of values."""
    found: Schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return found


def resolved(part: Schema) -> Schema:
    """A part of the schema with what it refers to, its own words going before."""
    if "$ref" not in part:
        return part
    found = schema()
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return {**resolved(found), **{name: part[name] for name in part if name != "$ref"}}


def _keys(node: yaml.MappingNode, part: Schema, above: str, lines: list[str]) -> Iterator[Key]:
    for name, value in node.value:
        mine = resolved(_inner(part, name.value))
        path = f"{above}{name.value}"
        if isinstance(value, yaml.MappingNode) and value.value and _known(mine):
            yield from _keys(value, mine, f"{path}.", lines)
        else:
            comment = _comment(lines, name.start_mark.line, name.start_mark.column)
            yield Key(path, comment, mine, _plain(value))


def _inner(part: Schema, name: str) -> Schema:
    """What a key of an object may be, or any key of a map."""
    found = part.get("properties", {}).get(name, part.get("additionalProperties"))
    if not isinstance(found, dict):
        raise KeyError(f"{name} is not in values.schema.json")
    return found


def _known(part: Schema) -> bool:
    """Whether the schema knows the keys of an object, or those of each value of a map."""
    more = part.get("additionalProperties")
    return "properties" in part or (isinstance(more, dict) and "properties" in resolved(more))


def _comment(lines: list[str], line: int, column: int) -> str:
    """The block right above a key; an indented example in it or after an empty line is left out."""
    start = " " * column + "#"
    first = line
    while first and lines[first - 1].startswith(start):
        first -= 1
    words = [text[len(start) :] for text in lines[first:line]]
    told: list[str] = []
    for word in words:
        if not word.strip() or word.startswith("  "):
            break
        told.append(word.strip())
    return " ".join(told)


def _plain(node: yaml.Node) -> Any:
    return yaml.load(yaml.serialize(node, Dumper=yaml.CSafeDumper), Loader=yaml.CSafeLoader)
