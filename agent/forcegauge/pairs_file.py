"""The file of a ranking: a line per pair, added while pairs are measured, then put in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from forcegauge.errors import InputError, RunError
from forcegauge.textfiles import read_lines, write_whole

DIGITS = 7
"""Significant digits of written numbers: what float32 holds."""

_OTHER = "Write to another file, or remove this one"
_TORN = {start[:size] for start in ('{"id', '{"ra') for size in (1, 2, 3, 4)}


@dataclass(frozen=True)
class Ranking:
    """The ranked pairs: the rows at both ends, and every entanglement that is defined."""

    top: Sequence[Mapping[str, Any]]
    bottom: Sequence[Mapping[str, Any]]
    count: int
    entanglements: Sequence[float]
    """rho+, falling."""

    @property
    def displacing(self) -> int:
        """Pairs with rho+ above 1."""
        return sum(value > 1 for value in self.entanglements)

    @property
    def median(self) -> float | None:
        """Median rho+, None when no pair has one."""
        return median(self.entanglements) if self.entanglements else None


def read_measured(path: str | Path, model: str, expected: Mapping[str, str]) -> set[str]:
    """Ids of the pairs that the file holds already; a torn last line is cut off.

    ``expected`` is the hash of every pair by id. Raises `InputError` for a file that holds
    something else: another model's pairs, other pairs, or no ranking at all.
    """
    if not Path(path).exists():
        return set()
    found, whole = set(), 0
    for number, text in read_lines(path):
        if not text.endswith("\n") and text[:4] in _TORN:
            _cut(path, whole)
            break
        row = _row(text, path, number)
        if row["model"] != model:
            raise InputError(f"holds pairs measured with {row['model']}", fix=_OTHER, file=path)
        if expected.get(row["id"]) != row["hash"]:
            problem = f"holds {row['id']} of another dataset, with other weights or settings"
            raise InputError(problem, fix=_OTHER, file=path, line=number)
        found.add(row["id"])
        whole += len(text.encode())
    return found


def _row(text: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
        known = {name: str(row[name]) for name in ("id", "model", "hash")}
        _place(known)
        return {**row, **known}
    except (ValueError, KeyError, TypeError, IndexError):
        fix = "Write to another file"
        raise InputError("is no line of a ranking", fix=fix, file=path, line=number) from None


def _cut(path: str | Path, size: int) -> None:
    try:
        with Path(path).open("r+b") as stream:
            stream.truncate(size)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}).") from None


def add_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines in one write; raises `RunError` when it fails for want of space or rights."""
    text = "".join(json.dumps(_written(row)) + "\n" for row in rows)
    try:
        with Path(path).open("ab") as stream:
            stream.write(text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}).") from None


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as they are written; JSON has no NaN and no infinity, so these are null."""
    return {name: _number(v) if isinstance(v, float) else v for name, v in row.items()}


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def put_in_order(path: str | Path, top: int) -> Ranking:
    """Rewrite the file with the most entangled pair first and a rank in each line; pairs without
    an entanglement come last, equals in the order of the dataset."""
    lines: list[tuple[float, int, str]] = []
    for number, text in read_lines(path):
        row = _row(text, path, number)
        value = row.get("entanglement")
        lines.append((math.inf if value is None else -value, _place(row), _ranked(row)))
    lines.sort()
    ranked = [f'{{"rank": {rank}, {text}\n' for rank, (_, _, text) in enumerate(lines, start=1)]
    write_whole(path, "".join(ranked))
    rows = [json.loads(text) for text in (*ranked[:top], *ranked[top:][-top:])]
    return Ranking(rows[:top], rows[top:], len(lines), [-v for v, _, _ in lines if v < math.inf])


def _place(row: Mapping[str, Any]) -> int:
    """Line or row in the dataset, which the id names."""
    return int(str(row["id"]).rpartition("-")[2])


def _ranked(row: Mapping[str, Any]) -> str:
    """The line without its start, where the rank will stand."""
    return json.dumps({name: value for name, value in row.items() if name != "rank"})[1:]
