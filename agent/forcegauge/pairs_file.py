"""The file of a ranking: a line per pair, added while pairs are measured, then put in order."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from forcegauge.errors import InputError, RunError
from forcegauge.pairs_survey import Survey, number
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
    entanglements: npt.NDArray[np.float64]
    """rho+, falling."""

    @property
    def displacing(self) -> int:
        """Pairs with rho+ above 1."""
        return int((self.entanglements > 1).sum())

    @property
    def median(self) -> float | None:
        """Median rho+, None when no pair has one."""
        return float(np.median(self.entanglements)) if self.entanglements.size else None


def read_measured(path: str | Path, model: str, looked: Survey, run: Sequence[object]) -> bytearray:
    """1 for every pair that the file holds already, by its number; a torn last line is cut off.

    ``run`` is what all hashes begin with. Raises `InputError` for a file that holds something
    else: another model's pairs, other pairs, or no ranking at all.
    """
    found, whole = bytearray(len(looked.digests)), 0
    if not Path(path).exists():
        return found
    for line, text in read_lines(path):
        if not text.endswith("\n") and text[:4] in _TORN:
            _cut(path, whole)
            break
        row = _row(text, path, line)
        if row["model"] != model:
            raise InputError(f"holds pairs measured with {row['model']}", fix=_OTHER, file=path)
        if looked.expected(row["id"], run) != row["hash"]:
            problem = f"holds {row['id']} of another dataset, with other weights or settings"
            raise InputError(problem, fix=_OTHER, file=path, line=line)
        found[number(row["id"])] = 1
        whole += len(text.encode())
    return found


def _row(text: str, path: str | Path, line: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
        known = {name: str(row[name]) for name in ("id", "model", "hash")}
        number(known["id"])
        return {**row, **known}
    except (ValueError, KeyError, TypeError, IndexError):
        fix = "Write to another file"
        raise InputError("is no line of a ranking", fix=fix, file=path, line=line) from None


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
    an entanglement come last, equals in the order of the dataset. Lines stay on disk: a few bytes
    of each are held."""
    values, numbers, starts = array("d"), array("Q"), array("Q")
    start = 0
    for line, text in read_lines(path):
        row = _row(text, path, line)
        value = row.get("entanglement")
        values.append(math.nan if value is None else value)
        numbers.append(number(row["id"]))
        starts.append(start)
        start += len(text.encode())
    falling = -np.frombuffer(values)
    order = np.lexsort((np.frombuffer(numbers, np.uint64), falling))  # NaN comes last
    places = np.frombuffer(starts, np.uint64)[order]
    ends: list[Mapping[str, Any]] = []
    with Path(path).open("rb") as stream:
        write_whole(path, _ranked(stream, places, top, ends))
    known = -falling[order]
    return Ranking(ends[:top], ends[top:], len(known), known[np.isfinite(known)])


def _ranked(
    stream: BinaryIO, places: npt.NDArray[np.uint64], top: int, ends: list[Mapping[str, Any]]
) -> Iterator[str]:
    """The lines at these places of the file with their rank; those at both ends are kept."""
    for rank, place in enumerate(places, start=1):
        stream.seek(int(place))
        row = {
            "rank": rank,
            **{k: v for k, v in json.loads(stream.readline()).items() if k != "rank"},
        }
        if rank <= top or rank > max(top, len(places) - top):
            ends.append(row)
        yield json.dumps(row) + "\n"
