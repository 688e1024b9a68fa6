"""The monitor's real processes for tests: Redis, API, workers and beat, killed and started anew."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcegauge_monitor.embedded import Family, forcegauge
from forcegauge_monitor.settings import PREFIX, Settings, load_settings
from forcegauge_monitor.store import Store, Unavailable, open_store
from tests.servers import fetch, free_port, require, wait_for

START_SECONDS = 120.0
PASSWORD = "not-to-be-told"


@dataclass
class Fleet:
    """Processes named redis, api, worker-1, ..., beat, and the store that they share."""

    folder: Path
    settings: Settings
    family: Family
    store: Store

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def kill(self, name: str) -> None:
        """As a machine does that runs out of memory: -9."""
        [child] = [child for child in self.family.children if child.name == name]
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        child.quick_ends = 0

    def revive(self) -> None:
        """Start again whatever was killed."""
        self.family.tend()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer; 0 and nothing while nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, kind, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status), json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except OSError:
            return 0, None

    def insist(self, method: str, path: str, body: Any = None) -> Any:
        """What is answered once somebody does, as a client gets that tries again."""

        def answer() -> list[Any]:
            status, found = self.call(method, path, body)
            return [found] if 200 <= status < 300 else []

        return wait_for(answer, 120)[0]

    def states(self, asked: dict[str, str]) -> dict[str, str]:
        """State by run of the snapshots that were asked for; empty while Redis is away."""
        try:
            found = {run: self.store.snapshot(run, key) for run, key in asked.items()}
        except Unavailable:
            return {}
        return {run: each.state if each else "forgotten" for run, each in found.items()}


def redis_command(folder: Path, port: int) -> list[str]:
    """A Redis that has on the disk what it has answered."""
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": ""}
    options |= {"appendonly": "yes", "appendfsync": "always", "requirepass": PASSWORD}
    return [require("redis-server"), *(part for k, v in options.items() for part in (f"--{k}", v))]


@contextmanager
def fleet(folder: Path, *, workers: int = 1, beat: bool = True, **given: Any) -> Iterator[Fleet]:
    """All processes, with settings of their own, until the block ends."""
    folder.mkdir(exist_ok=True)
    redis_port = free_port()
    given = {"storage": str(folder / "snapshots"), "port": free_port(), **given}
    settings = load_settings(redis_url=f"redis://:{PASSWORD}@127.0.0.1:{redis_port}/0", **given)
    file = folder / "settings.json"
    file.write_text(settings.model_dump_json(exclude_defaults=True))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    family = Family(folder, environment | {"OMP_NUM_THREADS": "1"})
    store = open_store(settings)
    made = Fleet(folder, settings, family, store)
    try:
        family.add("redis", redis_command(folder, redis_port))
        family.add("api", forcegauge("monitor", "serve", "--settings", str(file)))
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            more = ("--settings", str(file), "--name", name, "--queues", "cpu,scores")
            family.add(name, forcegauge("monitor", "worker", *more))
        if beat:
            family.add("beat", forcegauge("monitor", "beat", "--settings", str(file)))
        wait_for(lambda: fetch(f"{made.url}/readyz")[0] == 200, START_SECONDS)
        yield made
    finally:
        family.close()
        store.close()
