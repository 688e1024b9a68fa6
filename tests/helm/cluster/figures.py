"""What the cluster's tests measured: times, sizes, counts, in ``build/cluster.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = Path(__file__).parents[3] / "build" / "cluster.json"


def measured(name: str, value: float) -> None:
    """Keep a number under a name; the last one counts."""
    FILE.parent.mkdir(exist_ok=True)
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    known[name] = round(value, 1)
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Keep how many seconds the block took."""
    began = time.monotonic()
    yield
    measured(f"{name}, seconds", time.monotonic() - began)
