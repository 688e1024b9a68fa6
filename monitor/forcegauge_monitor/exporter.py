"""What the store knows -> Prometheus: one read for each scrape, nothing is kept between two."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from forcegauge.alarms import VERDICTS
from forcegauge.catalogue import METRICS, Metric
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor.catalogue import SNAPSHOTS, UPDATED, metric
from forcegauge_monitor.store import Store, Unavailable
from forcegauge_monitor.totals import Overview

Row = tuple[tuple[str, ...], float]

_OF_THE_AGENT = {row.name: row for row in METRICS}

CODES = ("2xx", "3xx", "4xx", "5xx")


class Requests:
    """Counts answers by the class of their status."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(CODES, 0))
        self._lock = threading.Lock()

    def seen(self, status: int) -> None:
        """One more answer."""
        with self._lock:
            self._counts[f"{status // 100}xx"] += 1

    def rows(self) -> list[Row]:
        """Counts by class."""
        return [((code,), self._counts[code]) for code in CODES]


class StoreCollector(Collector):
    """Reads the store once at every scrape; while it is away only that is told."""

    def __init__(self, store: Store, requests: Requests) -> None:
        self._store, self._requests = store, requests

    def describe(self) -> list[Family]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Family]:
        """One family for each metric that has samples."""
        yield _family("monitor_requests_total", self._requests.rows())
        try:
            found = self._store.overview()
        except Unavailable:
            yield _family("monitor_store_up", [((), 0)])
            return
        yield _family("monitor_store_up", [((), 1)])
        yield from _service(found)
        for family in (*_runs(found), *_results(found), *_scores(found)):
            if family.samples:
                yield family


def make_registry(store: Store, requests: Requests) -> CollectorRegistry:
    """A registry of its own, with the monitor's metrics alone."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store, requests))
    return registry


def exposition(registry: CollectorRegistry) -> str:
    """What Prometheus reads, in its text format (0.0.4).

    The library's own writer validates every name of every sample, which with thousands of runs
    takes longer than all the rest; the names here are the catalogue's.
    """
    return "".join(line for family in registry.collect() for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    yield f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"
    for sample in family.samples:
        labels = ",".join(f'{key}="{_escaped(text)}"' for key, text in sample.labels.items())
        yield f"{name}{{{labels}}} {float(sample.value)!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _service(found: Overview) -> Iterator[Family]:
    states = {
        "active": found.live,
        "stale": found.known - found.live - found.ended,
        "ended": found.ended,
    }
    yield _family("monitor_runs", [((state,), count) for state, count in states.items()])
    stages = Counter((queue, state) for queue, state, _, _ in found.stages.values())
    yield _family("monitor_snapshots", list(stages.items()))
    yield _family("monitor_failed_snapshots", [((), found.failed)])
    if found.beat is not None:
        yield _family("monitor_beat_timestamp_seconds", [((), found.beat)])
    workers = Counter((each.queue, "busy" if each.busy else "idle") for each in found.workers)
    yield _family("monitor_workers", list(workers.items()))


def _runs(found: Overview) -> Iterator[Family]:
    verdicts = found.verdicts.items()
    yield _family("monitor_run_state", [(pair, 1) for pair in verdicts if pair[1] in VERDICTS])
    yield _family("snapshots_total", list(found.counts.items()))
    yield _family(
        "monitor_snapshot_progress_ratio",
        [
            ((run,), done / total)
            for (run, _), (_, state, done, total) in found.stages.items()
            if state == "running" and total
        ],
    )


def _results(found: Overview) -> Iterator[Family]:
    results = found.results.items()
    yield _family("snapshot_step", [((run,), step) for run, (step, _) in results])
    for name in ("entk_alignment_ratio", "prediction_r2_ratio"):
        values = [((run,), numbers.get(name)) for run, (_, numbers) in results]
        yield _family(name, [(labels, value) for labels, value in values if _defined(value)])
    for name, updated in (("entk_norm", RESPONSE_TYPES), ("attribution_nats", UPDATED)):
        rows = [
            ((run, *pair), value)
            for run, (_, numbers) in results
            for pair, value in _pairs(numbers.get(name, {}), updated)
        ]
        yield _family(name, rows)
    changes = [
        ((run, kind), value)
        for run, (_, numbers) in results
        for kind, value in numbers.get("predicted_change_nats", {}).items()
        if kind in RESPONSE_TYPES and _defined(value)
    ]
    yield _family("predicted_change_nats", changes)


def _scores(found: Overview) -> Iterator[Family]:
    """The agent's metrics of runs that are watched without one."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for run, rows in found.scores.items():
        for name, labels, value in rows:
            row = _OF_THE_AGENT.get(name)
            # a worker of a later version may know more metrics
            if row is not None:
                family = families.setdefault(name, _empty(row, ("run", *row.labels)))
                family.add_metric([run, *labels], value)
    yield from families.values()


def _pairs(
    table: Mapping[str, Mapping[str, Any]], updated: tuple[str, ...]
) -> Iterator[tuple[tuple[str, str], float]]:
    for observed, row in table.items():
        for name, value in row.items():
            # whole samples are in the table too; labels come from bounded sets alone
            if observed in RESPONSE_TYPES and name in updated and _defined(value):
                yield (observed, name), value


def _defined(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _family(name: str, rows: list[Row] | list[tuple[Any, Any]]) -> Family:
    row: Metric = metric(name)
    family = _empty(row, ("run", *row.labels) if row in SNAPSHOTS else row.labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _empty(row: Metric, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return kind(row.name, row.meaning, labels=labels)
