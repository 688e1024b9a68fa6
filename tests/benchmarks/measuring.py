"""What one contender of the scoring benchmark took: seconds, memory, agreement."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass
class Row:
    """What one contender took: seconds of each round, the most that the process grew by, the peak
    of what it held (`scoring_memory`), largest difference of a response's log-prob per token from
    ours; seconds per response of each batch size."""

    way: str
    batch: int | None = None
    seconds: list[float] = field(default_factory=list)
    grown_mib: float = 0.0
    peak_mib: float = 0.0
    apart_nats: float = 0.0
    tried: dict[int, float] = field(default_factory=dict)


def clocked(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory(name: str) -> float:
    """A field of this process's memory status, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def release_memory() -> None:
    """What is free goes back to the system, and the peak of memory starts anew (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(row: Row, call: Callable[[], Tensor], lengths: Tensor, base: Tensor | None) -> Tensor:
    """One more round of a contender; its log-probs per token."""
    release_memory()
    before, start = memory("VmRSS"), time.perf_counter()
    means = call() / lengths
    row.seconds.append(time.perf_counter() - start)
    row.grown_mib = max(row.grown_mib, memory("VmHWM") - before)
    if base is not None:
        row.apart_nats = max(row.apart_nats, float((means - base).abs().max()))
    return means
