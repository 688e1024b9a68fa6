"""The run record on disk: append-only JSONL that survives a crash, per-response rows beside it."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from forcegauge.errors import InputError
from forcegauge.scores import TOKEN_STATISTICS, Scores, TokenScores

logger = logging.getLogger("forcegauge")

SCHEMA = 1
RECORD_NAME = "record.jsonl"
KINDS = (
    "run",
    "probe",
    "forces",
    "alarm",
    "verdict",
    "snapshot",
    "checkpoint",
    "error",
    "end",
)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Line = dict[str, Any]
"""One line of a record; every line has schema, kind, run, phase, step and time (Unix seconds)."""

_COMMON: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "run": str,
    "phase": str,
    "step": int,
    "time": (int, float),
}


def check_run_name(run: str) -> None:
    """Raise `InputError` for a name that cannot be a run's."""
    if not RUN_NAME.fullmatch(run):
        fix = "Use 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        raise InputError(f"'{run}' cannot name a run", field="run", fix=fix)


class Record:
    """The open record of one run, held by one process at a time; see `open_record`.

    A line is handed to the system at once, in one write: a crash of the process loses nothing and
    tears at most the last line. It is not forced to the disk (a crash of the *machine* may lose
    the last half minute, which a resume from a checkpoint trains again) before `close`.
    """

    def __init__(self, directory: Path, run: str, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.run = run
        self._clock = clock
        # reentrant: a signal handler may append while the same thread is appending
        self._lock = threading.RLock()
        self._file = _open_locked(directory / RECORD_NAME)
        try:
            lines = _mended(self._file, directory / RECORD_NAME)
            self.record_id = _record_id(lines, run, directory / RECORD_NAME)
        except BaseException:
            self.close()
            raise

    def append(self, kind: str, fields: Mapping[str, object], *, phase: str, step: int) -> None:
        """Append one line; numbers that are not finite are left out of it.

        Raises `OSError` where the line cannot be written (disk full, record closed): nothing of
        it is left then, and a later line can be written again.
        """
        if kind not in KINDS:
            raise ValueError(f"no kind of line: '{kind}'")
        head = {"schema": SCHEMA, "kind": kind, "run": self.run, "phase": phase, "step": step}
        identity = {"record_id": self.record_id} if kind == "run" else {}
        line = {**head, "time": self._clock(), **identity, **fields}
        text = json.dumps(_finite(line), allow_nan=False, separators=(",", ":"))
        with self._lock:
            _write_whole(self._file, text.encode() + b"\n")

    def close(self) -> None:
        """Force the record to the disk and give it free; closing twice is harmless."""
        with self._lock:
            file, self._file = self._file, _CLOSED
        if file == _CLOSED:
            return
        try:
            os.fsync(file)
        finally:
            # by hand: a forked child (a data loader's worker) may hold the lock's file open
            _unlock(file)
            os.close(file)


_CLOSED = -1
_OPEN: dict[tuple[int, Path], Record] = {}
_OPENING = threading.Lock()


def open_record(
    directory: str | Path, run: str, *, clock: Callable[[], float] = time.time
) -> Record:
    """Open the record of a run in its directory, new or continued; a torn last line is mended.

    Raises `InputError` when the record is another run's, is damaged, or is being written by
    another process, and `OSError` when it cannot be written. Within one process the newest owner
    takes over: an older open record of this directory is closed.
    """
    check_run_name(run)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with _OPENING:
        # by process: a forked child inherits the table, and must not give its parent's lock free
        key = (os.getpid(), folder.resolve())
        if key in _OPEN:
            _OPEN.pop(key).close()
        _OPEN[key] = Record(folder, run, clock)
        return _OPEN[key]


def _open_locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        fix = "Give this run another name or directory, or stop the other one"
        raise InputError("another process is writing this record", file=path, fix=fix) from None
    except OSError as error:
        logger.warning("%s: no lock on this file system (%s); keep to one writer", path, error)
    return file


def _unlock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        logger.debug("no lock to give free: %s", error)


def _write_whole(file: int, data: bytes) -> None:
    size = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
    except BaseException:
        os.ftruncate(file, size)
        raise


def _mended(file: int, path: Path) -> list[Line]:
    """All whole lines; a torn last one is cut off, so that the next line stands on its own."""
    data = path.read_bytes()
    lines = _parse(data, path)
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        if _torn(data[whole:]):
            os.ftruncate(file, whole)
        else:
            _write_whole(file, b"\n")
    return lines


def _record_id(lines: Sequence[Line], run: str, path: Path) -> str:
    """The record's own id, made once; `secrets` leaves python's random numbers alone."""
    others = {line["run"] for line in lines} - {run}
    if others:
        problem = f"this record is of run '{others.pop()}'"
        raise InputError(problem, file=path, fix=f"Give '{run}' another directory")
    ids = [str(line["record_id"]) for line in lines if "record_id" in line]
    return ids[0] if ids else secrets.token_hex(8)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items() if not _undefined(item)}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _undefined(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_record(path: str | Path) -> list[Line]:
    """The lines of a record, given the run's directory or the file, in the order of writing.

    A torn last line is left out, and so is what a resume from an older step took back. Raises
    `InputError` with file and line for anything else that is no record, and for a record of a
    newer forcegauge.
    """
    file = Path(path)
    file = file / RECORD_NAME if file.is_dir() else file
    try:
        return _without_abandoned(_parse(file.read_bytes(), file))
    except OSError as error:
        fix = "Name a run's directory, where record.jsonl is"
        raise InputError(f"cannot be read ({error.strerror})", file=file, fix=fix) from None


_OF_WEIGHTS = ("probe", "forces", "alarm", "verdict", "end")


def _without_abandoned(lines: Sequence[Line]) -> list[Line]:
    """Lines of steps that a resume trained again belong to weights that are gone."""
    kept: list[Line] = []
    for line in lines:
        resumed = line.get("resumed_from")
        if line["kind"] == "run" and isinstance(resumed, int):
            kept = [row for row in kept if row["kind"] not in _OF_WEIGHTS or row["step"] <= resumed]
        kept.append(line)
    return kept


def _parse(data: bytes, path: Path) -> list[Line]:
    rows = data.split(b"\n")
    if _torn(rows[-1]):
        rows.pop()
    numbered = enumerate(rows, start=1)
    return [_line(raw, path, number) for number, raw in numbered if raw.strip()]


def _torn(raw: bytes) -> bool:
    try:
        json.loads(raw.decode())
    except (ValueError, RecursionError):
        return True
    return False


def _line(raw: bytes, path: Path, number: int) -> Line:
    try:
        line = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise InputError("is not JSON", file=path, line=number, fix=_DAMAGED) from None
    if not isinstance(line, dict) or not isinstance(line.get("schema"), int):
        raise InputError("is no line of a record", file=path, line=number, fix=_DAMAGED)
    _check_schema(line["schema"], path, number)
    for name, kind in _COMMON.items():
        if not isinstance(line.get(name), kind):
            problem = "is missing or of the wrong kind"
            raise InputError(problem, file=path, line=number, field=name, fix=_DAMAGED)
    return line


_DAMAGED = "The record was damaged or edited: delete that line"


def _check_schema(schema: int, path: Path, number: int | None = None) -> None:
    if schema > SCHEMA:
        problem = f"was written by a newer forcegauge (schema {schema}, known is {SCHEMA})"
        raise InputError(problem, file=path, line=number, fix="Upgrade forcegauge")


def probes_by_phase(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Probe lines of each phase by rising step, phases in the order in which they began.

    The last line of a step counts (a resume writes it again); the first is the phase's baseline.
    """
    found: dict[str, dict[int, Line]] = {}
    for line in lines:
        if line["kind"] == "probe":
            found.setdefault(line["phase"], {})[line["step"]] = line
    return {phase: [rows[step] for step in sorted(rows)] for phase, rows in found.items()}


_TOKEN_ARRAYS = ("probe", "type", "position", "token")


def write_scores(
    directory: str | Path,
    step: int,
    scores: Scores,
    *,
    phase: str,
    baseline: bool,
    per_token: bool = True,
) -> Path:
    """Write the scores of a step as ``scores/STEP.safetensors`` in a run's directory.

    Float32 arrays [probe, type] per statistic, NaN where absent. Per-token arrays (with the token
    ids, from which texts can be read) go to ``scores/tokens/STEP.safetensors``, for baselines and
    the latest step only. Each file is replaced whole. Raises `OSError`.
    """
    folder = Path(directory) / "scores"
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    facts = {"schema": str(SCHEMA), "phase": phase, "step": str(step), "baseline": str(baseline)}
    names = {"ids": json.dumps(scores.ids), "types": json.dumps(scores.types)}
    tokens = folder / "tokens" / f"{step}.safetensors"
    tokens.unlink(missing_ok=True)
    if per_token and scores.per_token.probe.size:
        _replace(tokens, save(_token_arrays(scores.per_token), facts))
    rows = {name: array.astype(np.float32) for name, array in scores.values.items()}
    path = folder / f"{step}.safetensors"
    _replace(path, save(rows, {**facts, **names}))
    _drop_older_tokens(tokens)
    return path


def _token_arrays(tokens: TokenScores) -> dict[str, npt.NDArray[Any]]:
    places = {name: getattr(tokens, name) for name in _TOKEN_ARRAYS}
    return places | {f"values.{name}": array for name, array in tokens.values.items()}


def _drop_older_tokens(latest: Path) -> None:
    for path in latest.parent.glob("*.safetensors"):
        if path != latest and not _of_baseline(path):
            path.unlink()


def _of_baseline(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as stored:
            return (stored.metadata() or {}).get("baseline") == str(True)
    except (OSError, SafetensorError):
        return False


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_scores(path: str | Path) -> Scores:
    """The scores that `write_scores` wrote; per-token arrays are empty where none were kept.

    Raises `InputError` when the file is missing, damaged or of a newer forcegauge.
    """
    file = Path(path)
    arrays, facts = _load(file)
    _check_schema(int(facts.get("schema", SCHEMA)), file)
    if not {"ids", "types"} <= facts.keys():
        raise InputError("holds no scores of a run", file=file, fix=_SCORES)
    tokens = file.parent / "tokens" / file.name
    return Scores(
        tuple(json.loads(facts["ids"])),
        tuple(json.loads(facts["types"])),
        {name: array.astype(np.float64) for name, array in arrays.items()},
        _token_scores(_load(tokens)[0] if tokens.exists() else {}),
    )


_SCORES = "Name a file of a run's scores folder, such as scores/0.safetensors"


def _token_scores(arrays: Mapping[str, npt.NDArray[Any]]) -> TokenScores:
    values = {k.removeprefix("values."): v for k, v in arrays.items() if k.startswith("values.")}
    probe, kind, position, token = (arrays.get(name, np.empty(0)) for name in _TOKEN_ARRAYS)
    return TokenScores(
        probe.astype(np.int32),
        kind.astype(np.int32),
        position.astype(np.int32),
        token.astype(np.int64),
        values or {name: np.empty(0, np.float32) for name in TOKEN_STATISTICS},
    )


def _load(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as stored:
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            return arrays, stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read ({error})", file=path, fix=_SCORES) from None
