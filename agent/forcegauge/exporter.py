"""What the gauge knows -> Prometheus: one immutable snapshot per run, read by every scrape."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import HTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from forcegauge.catalogue import LABEL_VALUES, METRICS, Metric, metric, signal_metric
from forcegauge.detectors import AlarmState
from forcegauge.errors import InputError

logger = logging.getLogger("forcegauge")

HIGHEST_PORT = 65535
SCRAPE_TIMEOUT_SECONDS = 10.0
"""A client that reads no further is dropped after this, so that threads cannot pile up."""

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]
"""``{type: {statistic: {mean, ...}}}``, as in a record's probe line."""

Reading = tuple[str, tuple[str, ...], float | None]


@dataclass(frozen=True)
class RunState:
    """What is known of a run, in the terms of its record; None or a missing key is undefined.

    ``scores`` and ``baseline`` are summaries as in a probe line, ``noise`` is by response type in
    nats, ``signals`` and ``forces`` are by name, ``failures`` counts by reason, ``alarms`` is by
    alarm. Times are in seconds, ``probe_timestamp`` in Unix time.
    """

    run: str
    phase: str
    model: str = ""
    probe_hash: str = ""
    version: str = ""
    active: bool = True
    verdict: str = "warming"
    since_step: int | None = None
    train_step: int | None = None
    probe_step: int | None = None
    probe_timestamp: float | None = None
    probe_duration: float | None = None
    overhead_ratio: float | None = None
    probes_scored: int | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    scores: Summary = field(default_factory=dict)
    baseline: Summary = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    forces: Mapping[str, float] = field(default_factory=dict)
    alarms: Mapping[str, AlarmState] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One defined value; ``labels`` are the values of the metric's labels, in its order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Snapshot:
    """Everything that a scrape sees of one run: all of it from the same moment."""

    run: str
    samples: tuple[Sample, ...]


def build_snapshot(state: RunState) -> Snapshot:
    """The samples that are defined: what is None, NaN or infinite is left out.

    Signals and forces without a metric stay in the record only. Raises `ValueError` for a label
    value that the catalogue does not list.
    """
    readings = [*_run(state), *_scores(state), *_signals(state), *_alarms(state)]
    return Snapshot(state.run, tuple(_samples(readings)))


def _samples(readings: Iterable[Reading]) -> Iterator[Sample]:
    for name, labels, value in readings:
        if value is not None and math.isfinite(value):
            yield _sample(metric(name), labels, float(value))


def _sample(row: Metric, labels: tuple[str, ...], value: float) -> Sample:
    for label, chosen in zip(row.labels, labels, strict=True):
        if label in LABEL_VALUES and chosen not in LABEL_VALUES[label]:
            raise ValueError(f"{row.name}: {label} cannot be '{chosen}'")
    return Sample(row, labels, value)


def _run(state: RunState) -> Iterator[Reading]:
    facts = (state.phase, model_label(state.model), state.probe_hash[:12], state.version)
    yield "run_info", facts, 1
    yield "run_active", (), state.active
    for verdict in {**dict.fromkeys(LABEL_VALUES["state"]), state.verdict: None}:
        yield "run_state", (verdict,), verdict == state.verdict
    yield "verdict_since_step", (), state.since_step
    yield "train_step", (), state.train_step
    yield "probe_step", (), state.probe_step
    yield "probe_timestamp_seconds", (), state.probe_timestamp
    yield "probe_duration_seconds", (), state.probe_duration
    yield "probe_overhead_ratio", (), state.overhead_ratio
    yield "probes_scored", (), state.probes_scored
    for reason, count in {**dict.fromkeys(LABEL_VALUES["reason"], 0), **state.failures}.items():
        yield "probe_failures_total", (reason,), count


def model_label(name: str) -> str:
    """The last part of a model's name, path or URL, without a query; at most 63 characters."""
    last = re.split(r"[?#]", name)[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last)[:63]


_LEVELS = {
    "logprob_nats": "logprob_mean",
    "argmax_logprob_nats": "argmax_logprob_mean",
    "argmax_mass_ratio": "argmax_mass",
    "entropy_nats": "entropy",
}
_CHANGES = {"logprob_change_nats": "logprob_mean", "argmax_mass_change_ratio": "argmax_mass"}


def _scores(state: RunState) -> Iterator[Reading]:
    for response_type in state.scores:
        labels = (response_type,)
        for name, statistic in _LEVELS.items():
            yield name, labels, _mean(state.scores, response_type, statistic)
        for name, statistic in _CHANGES.items():
            now = _mean(state.scores, response_type, statistic)
            yield name, labels, now - _mean(state.baseline, response_type, statistic)
    for response_type, noise in state.noise.items():
        yield "noise_floor_nats", (response_type,), noise


def _mean(summary: Summary, response_type: str, statistic: str) -> float:
    return summary.get(response_type, {}).get(statistic, {}).get("mean", math.nan)


def _signals(state: RunState) -> Iterator[Reading]:
    for signal, value in {**state.signals, **state.forces}.items():
        found = signal_metric(signal)
        if found is not None:
            row, labels = found
            yield row.name, labels, value


def _alarms(state: RunState) -> Iterator[Reading]:
    for name, alarm in state.alarms.items():
        yield "alarm_value", (name,), alarm.value
        yield "alarm_threshold", (name,), alarm.threshold
        yield "alarm_streak", (name,), alarm.streak
        yield "alarm_streak_needed", (name,), alarm.needed
        yield "alarm_since_step", (name,), alarm.since_step


class RunCollector(Collector):
    """The latest snapshot of every run; a scrape sees each of them whole."""

    def __init__(self) -> None:
        self._latest: Mapping[str, Snapshot] = {}
        self._publishing = threading.Lock()

    def publish(self, snapshot: Snapshot) -> None:
        """Put this snapshot in the place of its run's last one."""
        with self._publishing:
            self._latest = {**self._latest, snapshot.run: snapshot}

    def collect(self) -> Iterator[Family]:
        """One family per metric that has samples, in the catalogue's order."""
        latest = self._latest.values()
        for row in METRICS:
            family = _family(row)
            for snapshot in latest:
                for sample in snapshot.samples:
                    if sample.metric is row:
                        family.add_metric((snapshot.run, *sample.labels), sample.value)
            if family.samples:
                yield family


def _family(row: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return kind(row.name, row.meaning, labels=("run", *row.labels))


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def __init__(self, family: int, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = family
        super().__init__(address, _Handler.factory(registry))

    def server_bind(self) -> None:
        # HTTPServer asks DNS for the host's full name here: it can hold up a training for seconds
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def handle_error(self, request: object, client_address: object) -> None:
        level = logging.DEBUG if isinstance(sys.exception(), OSError) else logging.WARNING
        logger.log(level, "a scrape from %s failed: %s", client_address, sys.exception())


class _Handler(MetricsHandler):
    timeout = SCRAPE_TIMEOUT_SECONDS


class Endpoint:
    """``/metrics`` of this process on one address, from its making to the process's end.

    A port of 0 takes a free one. Raises `InputError` for an address that cannot be served.
    """

    def __init__(self, bind: str, port: int) -> None:
        self._collector = RunCollector()
        registry = CollectorRegistry()
        registry.register(self._collector)
        server = _serve(bind, port, registry)
        self.bind = bind
        self.port = int(server.server_port)
        threading.Thread(
            target=server.serve_forever, name="forcegauge-metrics", daemon=True
        ).start()

    def publish(self, snapshot: Snapshot) -> None:
        """Show this snapshot from now on, in the place of its run's last one."""
        self._collector.publish(snapshot)


def _serve(bind: str, port: int, registry: CollectorRegistry) -> _Server:
    if not 0 <= port <= HIGHEST_PORT:
        raise InputError(f"{port} is no port", field="port", fix=f"Use 0 to {HIGHEST_PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        return _Server(family, (str(address[0]), port), registry)
    except (OSError, UnicodeError) as error:
        raise _refusal(bind, port, error) from None


def _refusal(bind: str, port: int, error: OSError | UnicodeError) -> InputError:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        problem = f"{port} on {bind} is in use by {_listener(port)}"
        fix = "Choose another port (0 takes a free one; FORCEGAUGE_PORT), or stop that process"
        return InputError(problem, field="port", fix=fix)
    if code in (errno.EACCES, errno.EPERM):
        fix = "Choose a port above 1023"
        return InputError(f"this user may not serve port {port} on {bind}", field="port", fix=fix)
    problem = f"'{bind}' cannot be served ({getattr(error, 'strerror', None) or error})"
    fix = "Use 127.0.0.1, 0.0.0.0 or an address of this machine (FORCEGAUGE_BIND)"
    return InputError(problem, field="bind", fix=fix)


def _listener(port: int) -> str:
    """Who listens on a port, as far as this user may see (Linux)."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "another process"


def _listening(port: int) -> Iterator[str]:
    listen = "0A"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                local, state, inode = (row.split()[column] for column in (1, 3, 9))
                if state == listen and int(local.rsplit(":", 1)[1], 16) == port:
                    yield inode


_ENDPOINTS: dict[tuple[int, str, int], Endpoint] = {}
_OPENING = threading.Lock()


def endpoint(bind: str, port: int) -> Endpoint:
    """This process's endpoint on an address: made once, then shared by its gauges.

    Every call with port 0 makes a new one on a free port. Raises `InputError` as `Endpoint`.
    """
    with _OPENING:
        # by process: a forked child inherits this table, but not the thread that serves
        found = _ENDPOINTS.get((os.getpid(), bind, port)) or Endpoint(bind, port)
        return _ENDPOINTS.setdefault((os.getpid(), bind, found.port), found)
