from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forcegauge.alarms import VERDICTS
from forcegauge_monitor.catalogue import METRICS, SNAPSHOTS
from forcegauge_monitor.exporter import Requests, exposition, make_registry
from forcegauge_monitor.store import Store
from tests.monitor.asking import api
from tests.monitor.storing import RUN, running, snapshot
from tests.servers import fetch, prometheus, served, wait_for

NUMBERS = {
    "entk_norm": {"chosen": {"rejected": 1.5}, "none_such": {"chosen": 2.0}},
    "attribution_nats": {"unrelated": {"chosen": -0.25, "sample": 9.0}},
    "predicted_change_nats": {"chosen": 0.125, "rejected": float("nan")},
    "entk_alignment_ratio": 0.5,
    "prediction_r2_ratio": None,
    "history": ["long"],
}


def registry(store: Store) -> CollectorRegistry:
    return make_registry(store, Requests())


def told(store: Store) -> None:
    store.register(RUN)
    store.heartbeat("a", "first", {"verdict": "squeezing"})
    running(store, "one", 5)
    store.finish("a", "one", "/s", NUMBERS)
    running(store, "two", 6)
    store.progress("a", "two", 1, 4)
    store.worker_alive("w", "cpu", busy=True)


def test_a_runs_verdict_and_snapshot_are_exported(store: Store) -> None:
    told(store)
    found = registry(store)
    for name, labels, value in (
        ("monitor_run_state", {"state": "squeezing"}, 1),
        ("entk_norm", {"observed": "chosen", "updated": "rejected"}, 1.5),
        ("attribution_nats", {"observed": "unrelated", "updated": "chosen"}, -0.25),
        ("predicted_change_nats", {"response_type": "chosen"}, 0.125),
        ("entk_alignment_ratio", {}, 0.5),
        ("snapshot_step", {}, 5),
        ("snapshots_total", {"state": "done"}, 1),
        ("monitor_snapshot_progress_ratio", {}, 0.25),
    ):
        assert found.get_sample_value(f"forcegauge_{name}", {"run": "a", **labels}) == value, name


def test_the_monitors_own_health_is_exported(store: Store) -> None:
    told(store)
    store.ask(snapshot("three", 7))
    found = registry(store)
    for name, labels, value in (
        ("store_up", {}, 1),
        ("runs", {"state": "active"}, 1),
        ("runs", {"state": "stale"}, 0),
        ("snapshots", {"queue": "cpu", "state": "queued"}, 1),
        ("snapshots", {"queue": "cpu", "state": "running"}, 1),
        ("failed_snapshots", {}, 0),
        ("workers", {"queue": "cpu", "state": "busy"}, 1),
        ("beat_timestamp_seconds", {}, None),
    ):
        assert found.get_sample_value(f"forcegauge_monitor_{name}", labels) == value, name


def test_when_beat_was_last_at_work_is_exported(store: Store) -> None:
    before = time.time()
    store.beat_alive()
    found = registry(store).get_sample_value("forcegauge_monitor_beat_timestamp_seconds")
    assert found is not None
    assert before <= found <= time.time()


def test_what_is_undefined_or_unbounded_is_absent(store: Store) -> None:
    told(store)
    samples = {
        (sample.name, *sorted(sample.labels.items()))
        for family in registry(store).collect()
        for sample in family.samples
    }
    text = str(samples)
    assert "prediction_r2" not in text
    assert "none_such" not in text
    assert "'sample'" not in text
    assert ("response_type", "rejected") not in {pair for row in samples for pair in row[1:]}


def test_every_series_of_a_run_goes_when_it_is_forgotten(store: Store) -> None:
    told(store)
    store.forget("a")
    series = [s for family in registry(store).collect() for s in family.samples]
    assert [sample for sample in series if "run" in sample.labels] == []


def test_only_what_the_catalogue_declares_is_exported(store: Store) -> None:
    told(store)
    declared = {row.name: {*row.labels, *(("run",) if row in SNAPSHOTS else ())} for row in METRICS}
    for family in registry(store).collect():
        for sample in family.samples:
            assert set(sample.labels) == declared[sample.name]


def test_states_of_runs_are_the_verdicts(store: Store) -> None:
    store.register(RUN)
    for verdict in VERDICTS:
        store.heartbeat("a", "first", {"verdict": verdict})
        labels = {"run": "a", "state": verdict}
        assert registry(store).get_sample_value("forcegauge_monitor_run_state", labels) == 1


def test_the_text_is_what_the_library_would_write(store: Store) -> None:
    told(store)
    store.worker_alive('odd "name"\\n', 'odd "queue"\\\n', busy=False)
    found = registry(store)
    mine, theirs = exposition(found), generate_latest(found).decode()
    assert list(text_string_to_metric_families(mine)) == list(
        text_string_to_metric_families(theirs)
    )


def test_a_real_prometheus_reads_it(store: Store, tmp_path: Path) -> None:
    told(store)
    with (
        api(store, tmp_path) as it,
        served(it.client.app) as url,
        prometheus(tmp_path, [url.removeprefix("http://")]) as server,
    ):
        assert wait_for(lambda: server.query('forcegauge_monitor_run_state{state="squeezing"}'))
        assert server.query("forcegauge_entk_norm")
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=fetch(f"{url}/metrics")[1],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_api_starts_without_torch() -> None:
    code = "import sys, forcegauge_monitor.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
