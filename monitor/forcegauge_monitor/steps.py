"""A snapshot in steps for any number of workers; what is done is read off the folder they share."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from forcegauge.errors import RunError
from forcegauge.textfiles import write_whole
from forcegauge_monitor.entk.pieces import Piece
from forcegauge_monitor.job import Job, Settings
from forcegauge_monitor.page import write_page
from forcegauge_monitor.results import Metrics, merge
from forcegauge_monitor.snapshot import peak_memory
from forcegauge_monitor.storage import METRICS
from forcegauge_monitor.worker import Worker

TRIES = 5
"""A piece that was begun so often and never finished takes its workers down."""

MERGE = "merge"


def start(settings: Settings, folder: Path) -> None:
    """Plan a snapshot in its folder, or go on with what is there. Raises as `Job` does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    job = Job(settings, folder)
    if not job.finished():
        job.start()
        write_whole(folder / "work" / "total", str(sum(map(len, job.stages()))))


def opened(folder: Path) -> Worker:
    """The worker of a snapshot that is planned; the last one is kept, with its model."""
    plan = folder / "work" / "job.json"
    # a snapshot that was cancelled and asked for again may be planned in another way
    return _opened(folder, plan.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(folder: Path, planned: int) -> Worker:
    saved = json.loads((folder / "work" / "job.json").read_text(encoding="utf-8"))
    return Worker(Job(Settings(**saved["settings"]), folder))


def close() -> None:
    """Give the memory of the last snapshot's model free."""
    _opened.cache_clear()


def planned(folder: Path) -> bool:
    """Whether a snapshot has been started in a folder."""
    # written last
    return finished(folder) or (folder / "work" / "total").is_file()


def finished(folder: Path) -> bool:
    """Whether all is done and merged."""
    return (folder / METRICS).is_file()


def done(folder: Path, name: str) -> bool:
    """Whether a piece is there, or was and is merged."""
    return finished(folder) or (folder / "work" / f"{name}.safetensors").is_file()


def progress(folder: Path) -> tuple[int, int]:
    """Pieces that are done, and all; none of none before the plan is made."""
    if finished(folder):
        return 1, 1
    try:
        total = int((folder / "work" / "total").read_text())
    except (FileNotFoundError, ValueError):
        return 0, 0
    return sum(1 for _ in (folder / "work").glob("[!.]*.safetensors")), total


def following(folder: Path, *, again: bool = False) -> list[str]:
    """Names of the steps that can be done now and that nobody was told of yet: a stage's pieces, or
    the merge; `again` gives them also where somebody was told."""
    if finished(folder):
        return [MERGE]
    missing = [stage for stage in opened(folder).job.missing() if stage]
    names = [piece.name for piece in missing[0]] if missing else [MERGE]
    told = folder / "work" / f"told-{len(missing)}"
    try:
        told.touch(exist_ok=again)
    except FileExistsError:
        return []
    return names


def do(folder: Path, name: str, advance: Callable[[float], object]) -> float:
    """Do one piece and return the seconds it took; raises `RunError` for one that takes its workers
    down each time that it is begun."""
    worker = opened(folder)
    piece = _named(worker.job, name)
    with _tried(folder / "work" / f"{name}.tries"):
        began = time.monotonic()
        worker.run(piece, advance)
        return time.monotonic() - began


@contextmanager
def _tried(tries: Path) -> Iterator[None]:
    """Count what is begun; only a process that was killed leaves its mark."""
    with tries.open("ab") as file:
        file.write(b".")
    try:
        if tries.stat().st_size > TRIES:
            times = f"{tries.stem} was begun {TRIES} times and each time its worker was killed"
            raise RunError(f"{times}: out of memory?")
        yield
    finally:
        tries.unlink(missing_ok=True)


def _named(job: Job, name: str) -> Piece:
    for stage in job.stages():
        for piece in stage:
            if piece.name == name:
                return piece
    raise RunError(f"{name} is no piece of this snapshot.")


def merged(folder: Path, began: float) -> Metrics:
    """Merge all pieces, write the page, and return the metrics; the same again where that is done.

    `began` is when the snapshot was begun, Unix seconds.
    """
    if not finished(folder):
        try:
            merge(opened(folder).job)
        except (OSError, RunError):
            # another worker, told the same after a crash, may have been first
            if not finished(folder):
                raise
    path = folder / METRICS
    metrics: Metrics = json.loads(path.read_text(encoding="utf-8"))
    if "seconds" not in metrics:
        metrics["seconds"] = time.time() - began
        metrics["peak_memory_bytes"] = peak_memory(torch.device("cpu"))
        write_whole(path, json.dumps(metrics, indent=1, allow_nan=False))
    shutil.rmtree(folder / "work", ignore_errors=True)
    write_page(folder)
    return metrics


def dropped(folder: Path) -> None:
    """Remove what an unfinished snapshot holds."""
    if not finished(folder):
        shutil.rmtree(folder, ignore_errors=True)
