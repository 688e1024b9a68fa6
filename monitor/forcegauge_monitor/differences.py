"""What differs between two JSON values, as lines that each name their whole path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import unified_diff
from typing import Any

_NAMES = ("title", "name", "refId", "uid", "id")


def differences(before: Any, after: Any) -> list[str]:
    """Lines with ``-`` for what is before only and ``+`` for what is after only."""
    lines = unified_diff(list(_flat(before, "")), list(_flat(after, "")), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def pruned(value: Any, like: Any) -> Any:
    """A value without the keys that ``like`` does not have at the same place."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: pruned(value[key], like[key]) for key in like if key in value}
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [pruned(*pair) for pair in zip(value, like, strict=True)]
    return value


def _flat(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _flat(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for place, each in enumerate(value):
            yield from _flat(each, f"{path}[{_name(each, place)}]")
    else:
        yield f"{path}: {json.dumps(value, ensure_ascii=False)}"


def _name(value: Any, place: int) -> str:
    """An element by its name where it has one: what was moved or put before it does not matter."""
    names = (value.get(name) for name in _NAMES) if isinstance(value, dict) else ()
    return next((str(name) for name in names if name not in (None, "")), str(place))
