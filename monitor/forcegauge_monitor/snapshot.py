"""A snapshot from start to end in one process, going on where an earlier one was stopped."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from forcegauge.textfiles import write_whole
from forcegauge_monitor.entk.pieces import Piece
from forcegauge_monitor.job import Job
from forcegauge_monitor.results import Metrics, merge
from forcegauge_monitor.storage import METRICS
from forcegauge_monitor.worker import Worker

Progress = Callable[[Piece, float], object]
"""Told a piece and the forward passes of it that are done."""


def take(job: Job, progress: Progress = lambda piece, done: None) -> Metrics:
    """Do every piece that is missing, merge them, and return the metrics.

    A finished snapshot of the same inputs is returned as it is. Raises `InputError` and `RunError`
    as `Job` does.
    """
    finished = job.folder / METRICS
    if job.finished():
        return _read(finished)
    job.start()
    started, worker = time.monotonic(), Worker(job)
    for stage in job.missing():
        for piece in stage:
            worker.run(piece, partial(_share, progress, piece))
            progress(piece, piece.cost)
    metrics = merge(job)
    metrics["seconds"] = time.monotonic() - started
    metrics["peak_memory_bytes"] = peak_memory(job.device)
    write_whole(finished, json.dumps(metrics, indent=1, allow_nan=False))
    return _read(finished)


def _share(progress: Progress, piece: Piece, share: float) -> None:
    progress(piece, share * piece.cost)


def _read(path: Path) -> Metrics:
    found: Metrics = json.loads(path.read_text(encoding="utf-8"))
    return found


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far, on the device that did the work."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
