"""What differs between two JSON values, as lines that each name their whole path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

_NAMES = ("title", "name", "refId", "uid", "id")
_ABSENT = object()
_LONGEST_WHOLE = 120
"""Letters that are told of an object that is on one side only."""


def differences(before: Any, after: Any) -> list[str]:
    """Lines with ``-`` for what is before only and ``+`` for what is after only."""
    return list(_lines(before, after, ""))


def pruned(value: Any, like: Any) -> Any:
    """A value without the keys that ``like`` does not have at the same place."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: pruned(value[key], like[key]) for key in like if key in value}
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [pruned(*pair) for pair in zip(value, like, strict=True)]
    return value


def _lines(before: Any, after: Any, path: str) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_parts(before, after, f"{path}." if path else "", "")
    elif isinstance(before, list) and isinstance(after, list):
        old, new = _named(before), _named(after)
        if old is None or new is None:
            old, new = dict(enumerate(before)), dict(enumerate(after))
        yield from _of_parts(old, new, f"{path}[", "]")
        if set(old) == set(new) and list(old) != list(new):
            yield f"+{path}: in another order"
    else:
        told = (("-", before), ("+", after))
        yield from (f"{sign}{path}: {_text(each)}" for sign, each in told if each is not _ABSENT)


def _of_parts(before: Any, after: Any, opening: str, closing: str) -> Iterator[str]:
    for key in dict.fromkeys([*before, *after]):
        place = f"{opening}{key}{closing}"
        yield from _lines(before.get(key, _ABSENT), after.get(key, _ABSENT), place)


def _named(values: Sequence[Any]) -> dict[Any, Any] | None:
    """Elements by their names, so that it does not matter what was put before them; None where
    not each has one of its own."""
    names = [_name(value) for value in values]
    if None in names or len(set(names)) < len(names):
        return None
    return dict(zip(names, values, strict=True))


def _name(value: Any) -> str | None:
    names = (value.get(name) for name in _NAMES) if isinstance(value, dict) else ()
    return next((str(name) for name in names if name not in (None, "")), None)


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    whole = len(text) <= _LONGEST_WHOLE or not isinstance(value, dict | list)
    return text if whole else f"{text[:_LONGEST_WHOLE]} ..."
