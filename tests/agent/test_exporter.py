from __future__ import annotations

import gzip
import itertools
import logging
import math
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from forcegauge.catalogue import LABEL_VALUES, METRICS, metric
from forcegauge.detectors import AlarmState
from forcegauge.errors import InputError
from forcegauge.exporter import (
    Endpoint,
    RunCollector,
    RunState,
    Snapshot,
    build_snapshot,
    endpoint,
    model_label,
)
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.rl import CANDIDATE_TYPES
from tests.servers import prometheus, require, wait_for

STATISTICS = ("logprob_mean", "argmax_logprob_mean", "argmax_mass", "entropy")


def _summary(value: float) -> dict[str, dict[str, dict[str, float]]]:
    return {t: {s: {"mean": value, "n": 8} for s in STATISTICS} for t in RESPONSE_TYPES}


def _complete(run: str = "demo") -> RunState:
    """A run of which everything is known."""
    signals = {
        row.name.removeprefix("forcegauge_"): 0.25
        for row in METRICS
        if not row.labels and row.unit in ("nats", "ratio", "tokens")
    }
    signals |= {
        f"top_mass_{way}{kind}_ratio": 0.1 for way in ("", "change_") for kind in CANDIDATE_TYPES
    }
    signals |= {f"reference_change_{name}_nats": 0.2 for name in RESPONSE_TYPES}
    return RunState(
        run,
        "dpo",
        model="org/model",
        probe_hash="0123456789abcdef",
        version="0.1.0",
        verdict="squeezing",
        since_step=90,
        train_step=120,
        probe_step=110,
        probe_timestamp=1790000000.5,
        probe_duration=0.75,
        overhead_ratio=0.01,
        probes_scored=32,
        failures={"record": 2},
        scores=_summary(-1.5),
        baseline=_summary(-1.0),
        noise=dict.fromkeys(RESPONSE_TYPES, 0.05),
        signals=signals | {f"mass_{part}_ratio": 0.3 for part in LABEL_VALUES["part"]},
        forces={"force_up_norm": 1.0, "force_down_norm": 2.0, "valley_force_ratio": 0.5},
        alarms={
            name: AlarmState(name, 0.7, 0.5, 2, 3, since_step=90) for name in LABEL_VALUES["alarm"]
        },
    )


@pytest.fixture
def served() -> Endpoint:
    """A fresh endpoint on a free loopback port."""
    return Endpoint("127.0.0.1", 0)


def _scrape(where: Endpoint, accept: str = "text/plain") -> str:
    url = f"http://127.0.0.1:{where.port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as page:
        return str(page.read().decode())


def _series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(text: str, name: str, **labels: str) -> float | None:
    return _series(text).get((f"forcegauge_{name}", frozenset({"run": "demo", **labels}.items())))


def test_exported_names_are_exactly_the_catalogues(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    names = {name for name, _ in _series(_scrape(served))}
    assert names == {row.name for row in METRICS}


def test_help_and_type_are_the_catalogues(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    text = _scrape(served)
    for row in METRICS:
        assert f"# HELP {row.name} {row.meaning}\n" in text
        assert f"# TYPE {row.name} {row.kind}\n" in text


def test_a_run_of_all_twelve_types_stays_under_200_series(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    assert 100 < len(_series(_scrape(served))) < 200


def test_every_series_carries_its_run_and_the_labels_of_its_metric(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    for name, labels in _series(_scrape(served)):
        assert {label for label, _ in labels} == {"run", *metric(name).labels}
        assert ("run", "demo") in labels


def test_values_come_through(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    text = _scrape(served)
    assert _value(text, "logprob_nats", response_type="chosen") == -1.5
    assert _value(text, "logprob_change_nats", response_type="greedy") == -0.5
    assert _value(text, "mass_ratio", part="rest") == 0.3
    assert _value(text, "force_norm", direction="down") == 2.0
    assert _value(text, "alarm_streak", alarm="squeezing") == 2
    assert _value(text, "alarm_streak_needed", alarm="squeezing") == 3
    assert _value(text, "alarm_since_step", alarm="squeezing") == 90
    assert _value(text, "verdict_since_step") == 90
    assert _value(text, "probe_timestamp_seconds") == 1790000000.5
    info = {"phase": "dpo", "model": "model", "probe_hash": "0123456789ab", "version": "0.1.0"}
    assert _value(text, "run_info", **info) == 1


def test_one_state_of_five_is_one(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    text = _scrape(served)
    states = {state: _value(text, "run_state", state=state) for state in LABEL_VALUES["state"]}
    assert states == {**dict.fromkeys(LABEL_VALUES["state"], 0.0), "squeezing": 1.0}


def test_an_ended_run_is_not_active(served: Endpoint) -> None:
    served.publish(build_snapshot(replace(_complete(), active=False)))
    assert _value(_scrape(served), "run_active") == 0


def test_failures_start_at_zero_and_are_counters_without_created_series(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    text = _scrape(served)
    counted = {r: _value(text, "probe_failures_total", reason=r) for r in LABEL_VALUES["reason"]}
    assert counted == {**dict.fromkeys(LABEL_VALUES["reason"], 0.0), "record": 2.0}
    assert "_created" not in text
    assert "_total_total" not in text


def test_before_the_first_probe_only_progress_is_there() -> None:
    names = {s.metric.name for s in build_snapshot(RunState("demo", "sft", train_step=0)).samples}
    assert names == {
        f"forcegauge_{n}"
        for n in ("run_info", "run_active", "run_state", "train_step", "probe_failures_total")
    }


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_undefined_values_are_absent_never_zero(undefined: float) -> None:
    state = replace(
        _complete(),
        scores=_summary(undefined),
        noise={"chosen": undefined},
        signals={"squeeze_nats": undefined},
        forces={"valley_force_ratio": undefined},
        alarms={"squeezing": AlarmState("squeezing", None, 0.5, 0, 3)},
        overhead_ratio=undefined,
        probe_step=None,
    )
    snapshot = build_snapshot(state)
    gone = {
        *("logprob_nats", "logprob_change_nats", "argmax_mass_ratio", "entropy_nats"),
        *("noise_floor_nats", "squeeze_nats", "valley_force_ratio", "alarm_value"),
        *("probe_overhead_ratio", "probe_step"),
    }
    names = {sample.metric.name for sample in snapshot.samples}
    assert names.isdisjoint({f"forcegauge_{name}" for name in gone})
    assert all(math.isfinite(sample.value) for sample in snapshot.samples)


def test_a_type_without_a_baseline_has_no_change() -> None:
    state = replace(_complete(), baseline={})
    names = {sample.metric.name for sample in build_snapshot(state).samples}
    assert "forcegauge_logprob_nats" in names
    assert "forcegauge_logprob_change_nats" not in names


def test_signals_without_a_metric_stay_in_the_record() -> None:
    plain = build_snapshot(replace(_complete(), signals={}))
    more = build_snapshot(replace(_complete(), signals={"squeeze_excess_nats": 1.0}))
    assert more == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": {"a path of mine": 1}},
        {"noise": {"wrong": 0.1}},
        {"scores": {"wrong": {"entropy": {"mean": 1.0}}}},
        {"verdict": "fine"},
    ],
)
def test_label_values_outside_the_bounded_sets_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        build_snapshot(replace(_complete(), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("org/SmolLM2-135M", "SmolLM2-135M"),
        ("/home/me/runs/checkpoint-20/", "checkpoint-20"),
        ("https://user:secret@host/models/m?token=secret#x", "m"),
        ("a model\n", "a_model_"),
        ("", ""),
    ],
)
def test_a_models_label_is_its_last_part_without_secrets(name: str, label: str) -> None:
    assert model_label(name) == label
    assert len(model_label(name * 100)) <= 63


def test_several_runs_share_an_endpoint(served: Endpoint) -> None:
    for run in ("one", "two"):
        served.publish(build_snapshot(_complete(run)))
    series = _series(_scrape(served))
    assert {dict(labels)["run"] for _, labels in series} == {"one", "two"}
    assert _scrape(served).count("# TYPE forcegauge_squeeze_nats gauge") == 1


def test_a_later_snapshot_takes_the_place_of_the_runs_last(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    served.publish(build_snapshot(replace(_complete(), signals={}, train_step=121)))
    text = _scrape(served)
    assert _value(text, "train_step") == 121
    assert _value(text, "squeeze_nats") is None


def test_openmetrics_is_spoken_too(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    text = _scrape(served, "application/openmetrics-text")
    families = [*openmetrics_families(text)]  # type: ignore[no-untyped-call]
    assert {sample.name for family in families for sample in family.samples} == {
        row.name for row in METRICS
    }


def _all_equal(snapshot: Snapshot, value: float) -> Snapshot:
    return replace(snapshot, samples=tuple(replace(s, value=value) for s in snapshot.samples))


def test_a_scrape_that_is_overtaken_by_a_probe_shows_the_one_before() -> None:
    collector = RunCollector()
    snapshot = build_snapshot(_complete())
    collector.publish(_all_equal(snapshot, 1.0))
    scrape = collector.collect()
    seen = {sample.value for sample in next(scrape).samples}
    collector.publish(_all_equal(snapshot, 2.0))
    seen |= {sample.value for family in scrape for sample in family.samples}
    assert seen == {1.0}


def test_concurrent_scrapes_never_see_half_of_a_probe(served: Endpoint) -> None:
    snapshot = build_snapshot(_complete())
    served.publish(_all_equal(snapshot, 0.0))
    stop = threading.Event()

    def publish() -> None:
        for step in itertools.count(1):
            served.publish(_all_equal(snapshot, float(step)))
            if stop.is_set():
                return

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        seen = [{*_series(_scrape(served)).values()} for _ in range(20)]
    finally:
        stop.set()
        publisher.join()
    assert all(len(values) == 1 for values in seen)
    assert len({min(values) for values in seen}) > 5


def test_a_scrape_takes_under_50_ms(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    took = []
    for _ in range(20):
        start = time.perf_counter()
        _scrape(served)
        took.append(time.perf_counter() - start)
    assert sorted(took)[len(took) // 2] < 0.05


def test_gauges_of_one_process_share_an_address() -> None:
    first = endpoint("127.0.0.1", 0)
    assert endpoint("127.0.0.1", first.port) is first
    assert endpoint("127.0.0.1", 0) is not first


def test_a_busy_port_names_the_port_and_who_holds_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port: {port} on 127.0.0.1 is in use") as caught:
            endpoint("127.0.0.1", port)
    assert "\n" not in str(caught.value)
    assert re.search(r"process \d+ \(.+\)\. Choose another port", str(caught.value))


@pytest.mark.parametrize(
    ("bind", "port", "field"),
    [
        ("192.0.2.1", 0, "bind"),
        ("no-such-host.invalid", 0, "bind"),
        ("", 0, "bind"),
        ("a" * 70, 0, "bind"),
        ("127.0.0.1", 70000, "port"),
        ("127.0.0.1", -1, "port"),
    ],
)
def test_a_bad_address_is_one_clear_line(bind: str, port: int, field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: .*Use ") as caught:
        Endpoint(bind, port)
    assert "\n" not in str(caught.value)


def test_starting_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(name: str = "") -> str:
        raise AssertionError(f"looked up '{name}'")

    monkeypatch.setattr(socket, "getfqdn", lookup)
    Endpoint("127.0.0.1", 0)


def test_a_client_that_hangs_up_is_only_a_debug_line(
    served: Endpoint, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="forcegauge")
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        reset_on_close = struct.pack("ii", 1, 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
    wait_for(lambda: caplog.records, seconds=5)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "reset by peer" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_gzip_is_spoken(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    url = f"http://127.0.0.1:{served.port}/metrics"
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as page:
        assert gzip.decompress(page.read()).decode() == _scrape(served)


LAST_SIGHT = """
from forcegauge.exporter import RunState, build_snapshot, endpoint
def train():
    where = endpoint("127.0.0.1", 0)
    where.publish(build_snapshot(RunState("demo", "sft", active=False, train_step=7)))
    return where.port
print(train(), flush=True)
input()
"""


def test_the_endpoint_outlives_its_trainer_and_ends_with_the_process() -> None:
    command = [sys.executable, "-c", LAST_SIGHT]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            assert _value(page.read().decode(), "train_step") == 7
        process.communicate("\n", timeout=10)
    assert process.returncode == 0


@pytest.mark.slow
def test_promtool_finds_nothing_to_mend(served: Endpoint) -> None:
    served.publish(build_snapshot(_complete()))
    check = [require("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=_scrape(served), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_real_prometheus_returns_the_series(served: Endpoint, tmp_path: Path) -> None:
    served.publish(build_snapshot(_complete()))
    with prometheus(tmp_path, [f"127.0.0.1:{served.port}"]) as server:
        wait_for(lambda: server.query('forcegauge_run_active{run="demo"}'))
        rows = server.query('{__name__=~"forcegauge_.+"}')
        change = 'forcegauge_logprob_change_nats{run="demo",response_type="chosen"}'
        [found] = server.query(change)
    assert len(rows) == len(_series(_scrape(served)))
    assert float(found["value"][1]) == -0.5  # type: ignore[index]
