"""What the tests of the store share."""

from __future__ import annotations

from forcegauge_monitor.records import Run, Snapshot
from forcegauge_monitor.store import Store

RUN = Run("a", "first", address="host:9790", cluster="c")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def snapshot(key: str, step: int = 5, run: str = "a", probes: str = "/p") -> Snapshot:
    return Snapshot(key, run, f"/c/{step}", step, probes, "/t")


def running(store: Store, key: str = "one", step: int = 5) -> Snapshot:
    store.ask(snapshot(key, step))
    assert store.begin("a", key, "worker")
    found = store.snapshot("a", key)
    assert found is not None
    return found


def state(store: Store, key: str, run: str = "a") -> str:
    found = store.snapshot(run, key)
    return found.state if found else "unknown"
