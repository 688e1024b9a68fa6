"""A real Prometheus follows agents that join, end and are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from forcegauge_monitor.store import Store
from tests.monitor.asking import RUNS, api
from tests.servers import Prometheus, fetch, prometheus, redis_server, served, wait_for

STALE_SECONDS = 5.0

# agents, each with a port of its own, that register, heartbeat and are scraped until killed
AGENTS = """
import http.server, json, sys, threading, time, urllib.request

url, *names = sys.argv[1:]

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        run = self.server.run
        self.wfile.write(f'forcegauge_run_active{{run="{run}"}} 1\\n'.encode())

    def log_message(self, *_):
        pass

def post(path, name, **body):
    data = json.dumps({"record_id": name, **body}).encode()
    head = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}{path}", data, head)).close()

for name in names:
    page = http.server.HTTPServer(("127.0.0.1", 0), Page)
    page.run = name
    threading.Thread(target=page.serve_forever, daemon=True).start()
    post("", name, run=name, address=f"127.0.0.1:{page.server_port}", cluster="c1")
while True:
    for name in names:
        post(f"/{name}/heartbeat", name, step=1)
    time.sleep(0.5)
"""


@contextmanager
def agents(url: str, names: set[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", AGENTS, f"{url}{RUNS}", *sorted(names)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def scraped(server: Prometheus) -> set[str]:
    """The runs of the targets that Prometheus has and reaches now."""
    rows = server.query('forcegauge_run_active{cluster="c1"} and on (instance) up == 1')
    return {row["metric"]["run"] for row in rows}  # type: ignore[index]


def targets(server: Prometheus) -> int:
    _, text = fetch(f"{server.url}/api/v1/targets?state=active")
    return len(json.loads(text)["data"]["activeTargets"])


def follows(server: Prometheus, names: set[str]) -> bool:
    return targets(server) == len(names) and scraped(server) == names


@pytest.mark.slow
def test_prometheus_follows_runs_that_join_end_and_die(tmp_path: Path) -> None:
    (tmp_path / "prometheus").mkdir()
    staying, killed = {f"stay-{n}" for n in range(40)}, {f"die-{n}" for n in range(10)}
    with (
        redis_server(tmp_path) as redis,
        closing(Store(redis, stale_seconds=STALE_SECONDS)) as store,
        api(store, tmp_path) as it,
        served(it.client.app) as url,
        prometheus(tmp_path / "prometheus", discovery=f"{url}/sd/targets") as server,
        agents(url, staying),
    ):
        wait_for(lambda: follows(server, staying))
        with agents(url, killed) as doomed:
            wait_for(lambda: follows(server, staying | killed))
            doomed.kill()
            wait_for(lambda: follows(server, staying))
        ended = {name for name in staying if name.endswith(("0", "5"))}
        for name in ended:
            store.end(name, name, "finished")
        wait_for(lambda: follows(server, staying - ended))
        assert store.overview().known == 50
