"""What the tests of the API share: an application on a real Redis, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from forcegauge_monitor.api import create_app
from forcegauge_monitor.records import Snapshot
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store

RUNS = "/api/v1/runs"
BASE = "http://localhost"


@dataclass
class Api:
    """A client, and what the application handed to the workers."""

    client: TestClient
    store: Store
    folder: Path
    submitted: list[Snapshot] = field(default_factory=list)

    def register(self, run: str = "a", record_id: str = "first", **facts: Any) -> Any:
        told = {"probes": str(self.folder / "probes.jsonl"), "loss": "dpo", "beta": 0.1}
        told |= {"train": str(self.folder / "train.jsonl"), "address": "127.0.0.1:9790"}
        body = {"run": run, "record_id": record_id, **told, **facts}
        return self.client.post(RUNS, json=body)

    def beat(self, run: str = "a", record_id: str = "first", **facts: Any) -> Any:
        return self.client.post(f"{RUNS}/{run}/heartbeat", json={"record_id": record_id, **facts})

    def ask(self, number: int = 5, /, **facts: Any) -> Any:
        body = {"checkpoint": str(self.folder / f"checkpoint-{number}"), **facts}
        return self.client.post(f"{RUNS}/a/snapshots", json=body)


@contextmanager
def api(store: Store, folder: Path, *, url: str = BASE, **settings: Any) -> Iterator[Api]:
    """An application with these settings, whose storage is ``folder``."""
    submitted: list[Snapshot] = []
    app = create_app(Settings(storage=str(folder), **settings), store, submitted.append)
    with TestClient(app, url, raise_server_exceptions=False) as client:
        yield Api(client, store, folder, submitted)


def is_problem(answer: Any, status: int) -> bool:
    """Whether it is a problem+json of this status, with all that belongs to one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    return body["status"] == status and bool(body["title"]) and bool(body["detail"])
