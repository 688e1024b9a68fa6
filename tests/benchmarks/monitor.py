"""The monitor under load, on a real Redis and a real uvicorn (`make bench-monitor`).

Pages are compared with their floor: one pipelined read of the same keys by a bare client, measured
in turns with the page, so that the machine's mood is in both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from forcegauge_monitor.connection import connect
from forcegauge_monitor.records import Run
from forcegauge_monitor.scripts import PREFIX
from forcegauge_monitor.store import Store
from tests.servers import fetch, free_port, redis_server, server

SERVE = """
import sys, uvicorn
from forcegauge_monitor.api import create_app
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import open_store
settings = Settings(redis_url=sys.argv[1], requests_per_second=0, stale_seconds=1e6)
app = create_app(settings, open_store(settings), lambda snapshot: None)
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""

_TABLES = ("verdicts", "results", "counts", "stages", "workers", "scores")

READS: dict[str, Sequence[str]] = {"/sd/targets": ("targets",), "/metrics": _TABLES}
"""What each page reads; its floor is one pipeline of just this."""

HOUR_BEATS = 240
"""Heartbeats of a run in an hour, one every 15 seconds."""


@dataclass(frozen=True)
class Page:
    """Median seconds of a page and of its floor; ``ratio`` is the median of their ratios."""

    bytes: int
    seconds: float
    floor_seconds: float
    ratio: float


@dataclass(frozen=True)
class Beats:
    """Heartbeats per second as asked and as got, latencies in seconds, failures."""

    asked: float
    got: float
    median: float
    p99: float
    failures: int


@dataclass(frozen=True)
class Memory:
    """Bytes at the first quarter of an hour's heartbeats and at its end."""

    beats: int
    server: tuple[int, int]
    redis: tuple[int, int]


@dataclass(frozen=True)
class Service:
    """A running API and its Redis."""

    port: int
    redis: str
    pid: int

    def link(self) -> http.client.HTTPConnection:
        """A connection that is kept."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """A real Redis that appends to a file, and the API in a process of its own."""
    (folder / "redis").mkdir()
    port = free_port()
    with redis_server(folder / "redis", "--appendonly", "yes") as redis:
        command = [sys.executable, "-c", SERVE, redis, str(port)]
        ready = f"http://127.0.0.1:{port}/readyz"
        with server(command, folder, lambda: fetch(ready)[0] == 200) as pid:
            yield Service(port, redis, pid)


def register(redis: str, runs: int) -> None:
    """Runs with addresses and verdicts, as agents register them."""
    store = Store(redis)
    for number in range(runs):
        name = f"team-{number % 97}-finetune-{number}"
        facts = {"model": "SmolLM2-135M", "loss": "dpo", "cluster": "c1", "namespace": "research"}
        store.register(Run(name, f"{number:016x}", address=f"node-{number}:9790", **facts))  # type: ignore[arg-type]
        store.heartbeat(name, f"{number:016x}", {"step": number, "verdict": "learning"})
    store.close()


def page(found: Service, path: str, rounds: int) -> Page:
    """A page and its floor, in turns."""
    link, client = found.link(), connect(found.redis)

    def shown() -> int:
        return _read(link, path)

    def floor() -> None:
        pipe = client.pipeline()
        read = pipe.hvals if path == "/sd/targets" else pipe.hgetall
        for table in READS[path]:
            read(f"{PREFIX}{table}")
        pipe.execute()

    size = shown()
    floor()
    pairs = [(seconds(shown), seconds(floor)) for _ in range(rounds)]
    link.close()
    client.close()
    return Page(
        bytes=size,
        seconds=statistics.median(a for a, _ in pairs),
        floor_seconds=statistics.median(b for _, b in pairs),
        ratio=statistics.median(a / b for a, b in pairs),
    )


def _read(link: http.client.HTTPConnection, path: str) -> int:
    link.request("GET", path)
    answer = link.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {answer.read()[:200]!r}")
    return len(answer.read())


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def beats(found: Service, rate: float, duration: float, threads: int = 8) -> Beats:
    """Heartbeats at a rate from clients that keep their connections, each of a run of its own.

    Latencies count from when a heartbeat was due: one that waits for another is late.
    """
    _join(found, threads)
    begin, each = time.perf_counter() + 0.2, threads / rate
    count = int(duration / each)
    with ThreadPoolExecutor(threads) as pool:
        rows = pool.map(lambda n: _beat(found, n, begin + n / rate, each, count), range(threads))
        told = [row for rows_of_one in rows for row in rows_of_one]
    late = sorted(seconds for seconds, _ in told)
    return Beats(
        asked=rate,
        got=len(told) / (time.perf_counter() - begin),
        median=statistics.median(late),
        p99=late[int(0.99 * len(late))],
        failures=sum(not fine for _, fine in told),
    )


def _join(found: Service, runs: int) -> None:
    link = found.link()
    for number in range(runs):
        body = {"run": f"load-{number}", "record_id": "load", "address": f"h:{number + 1}"}
        if _post(link, "/api/v1/runs", body) not in (200, 201):
            raise RuntimeError("a run cannot register")
    link.close()


def _beat(
    found: Service, number: int, begin: float, every: float, count: int
) -> list[tuple[float, bool]]:
    link, told = found.link(), []
    for step in range(count):
        due = begin + step * every
        time.sleep(max(0.0, due - time.perf_counter()))
        fine = _post(link, f"/api/v1/runs/load-{number}/heartbeat", _told(step)) == 200
        told.append((time.perf_counter() - due, fine))
    link.close()
    return told


def _told(step: int) -> dict[str, object]:
    """A heartbeat; every fourth one brings an event."""
    event = {"id": f"e{step}", "kind": "verdict", "step": step, "time": 1.0, "text": "learning."}
    facts = {"record_id": "load", "step": step, "verdict": "learning", "since_step": 0}
    return {**facts, "evidence": "nothing moves", "events": [] if step % 4 else [event]}


def _post(link: http.client.HTTPConnection, path: str, body: object) -> int:
    link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = link.getresponse()
    answer.read()
    return answer.status


def memory(found: Service, runs: int, hour: int = HOUR_BEATS) -> Memory:
    """An hour's heartbeats of so many runs, as fast as they go, with a scrape now and then."""
    _join(found, runs)
    link, client, sizes = found.link(), connect(found.redis), []
    for step in range(hour):
        for number in range(runs):
            _post(link, f"/api/v1/runs/load-{number}/heartbeat", _told(step))
        if step % 40 == 0:
            _read(link, "/metrics")
        if step + 1 in (hour // 4, hour):
            sizes.append((_resident(found.pid), int(client.info("memory")["used_memory"])))
    link.close()
    client.close()
    (server_then, redis_then), (server_now, redis_now) = sizes
    return Memory(runs * hour, (server_then, server_now), (redis_then, redis_now))


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure all of it and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as found:
        register(found.redis, options.runs)
        results: dict[str, object] = {
            path: asdict(page(found, path, options.rounds)) for path in READS
        }
        results["heartbeats"] = asdict(beats(found, 200, options.seconds))
        results["memory"] = asdict(memory(found, 100))
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
