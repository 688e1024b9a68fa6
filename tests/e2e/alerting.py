"""Everything between an agent and whoever is told, with real servers on loopback.

Monitor (with its Redis), Prometheus that discovers the runs through it and evaluates the shipped
rules, Alertmanager with the example's routes and inhibitions, and a webhook that listens.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

import dashboards
from forcegauge.alarms import ALARMS
from forcegauge.record import Line
from forcegauge_monitor.alerts import alert_name
from forcegauge_monitor.api import create_app
from forcegauge_monitor.embedded import forcegauge
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store
from tests.servers import Prometheus, fetch, free_port, redis_server, require, served, server

ROOT = Path(dashboards.__file__).parent
RULES = ROOT / "rules" / "forcegauge.rules.yaml"
ALERTMANAGER = ROOT / "alertmanager" / "alertmanager.yml"

OF_ALARMS = frozenset({*map(alert_name, ALARMS), "ForceGaugeCollapsed"})
"""Alerts about what a run does, beside those about forcegauge itself."""


@dataclass(frozen=True)
class Message:
    """One alert as a receiver hears of it, and when, in Unix seconds."""

    time: float
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True)
class Watch:
    """A running chain: the monitor's URL, Prometheus, and what the webhook has heard so far."""

    monitor: str
    prometheus: Prometheus
    heard: list[Message]


def told(heard: Sequence[Message], run: str) -> set[str]:
    """Names of the alarms' alerts that fired for a run."""
    return {
        row.labels["alertname"]
        for row in heard
        if row.labels.get("run") == run and row.status == "firing"
    } & OF_ALARMS


def first(heard: Sequence[Message], run: str, alert: str) -> Message:
    """The first message that says that the alert fires for the run."""
    names = {"run": run, "alertname": alert}
    return next(m for m in heard if names.items() <= m.labels.items() and m.status == "firing")


def switched_on(lines: Sequence[Line], alarm: str) -> Line:
    """The record's line with which an alarm went on."""
    return next(x for x in lines if x["kind"] == "alarm" and x["alarm"] == alarm and x["on"])


def settle() -> None:
    """Let what is on its way arrive: some rounds of scraping, evaluating and telling."""
    time.sleep(10.0)


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """The whole chain, its files in ``folder``; scrapes, evaluates and tells every second."""
    rooms = {name: folder / name for name in ("redis", "beat", "alertmanager", "prometheus")}
    for room in rooms.values():
        room.mkdir(parents=True)
    heard: list[Message] = []
    with (
        redis_server(rooms["redis"]) as redis,
        closing(Store(redis)) as store,
        _beat(rooms["beat"], redis, store),
        served(create_app(Settings(), store, lambda snapshot: None)) as monitor,
        webhook(heard) as hook,
        alertmanager(rooms["alertmanager"], hook) as alerts,
        _prometheus(rooms["prometheus"], monitor, alerts) as found,
    ):
        yield Watch(monitor, found, heard)


def _beat(folder: Path, redis: str, store: Store) -> AbstractContextManager[int]:
    file = folder / "settings.json"
    file.write_text(json.dumps({"redis_url": redis}))
    command = forcegauge("monitor", "beat", "--settings", str(file))
    return server(command, folder, lambda: store.overview().beat is not None)


@contextmanager
def webhook(heard: list[Message]) -> Iterator[str]:
    """An HTTP server that keeps what it is told; its URL."""

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            now = time.time()
            for row in body["alerts"]:
                heard.append(Message(now, row["status"], row["labels"], row["annotations"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def alertmanager(folder: Path, hook: str) -> Iterator[str]:
    """The example's routes and inhibitions, every receiver the webhook; its ``host:port``."""
    config = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))
    # what waits to be grouped or repeated is a setting of theirs, and no time of ours
    for route in (config["route"], *config["route"]["routes"]):
        route.update(group_wait="0s", group_interval="1s")
    names = [receiver["name"] for receiver in config["receivers"]]
    config["receivers"] = [{"name": n, "webhook_configs": [{"url": hook}]} for n in names]
    del config["templates"]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        require("prometheus-alertmanager"),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with server(command, folder, lambda: fetch(f"http://{address}/-/ready")[0] == 200):
        yield address


@contextmanager
def _prometheus(folder: Path, monitor: str, alerts: str) -> Iterator[Prometheus]:
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    found = [{"url": f"{monitor}/sd/targets", "refresh_interval": "1s"}]
    own = [{"targets": [monitor.removeprefix("http://")]}]
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts]}]}]},
        "scrape_configs": [
            {"job_name": "forcegauge", "http_sd_configs": found},
            {"job_name": "forcegauge-monitor", "static_configs": own},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        require("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with server(command, folder, lambda: fetch(f"http://{address}/-/ready")[0] == 200):
        yield Prometheus(f"http://{address}")
