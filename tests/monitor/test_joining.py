"""Agents and the real monitor: what the one tells, the other knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forcegauge import client
from forcegauge.gauge import ForceGauge
from forcegauge_monitor.api import create_app
from forcegauge_monitor.auth import new_token
from forcegauge_monitor.records import Snapshot
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store
from tests import tiny
from tests.servers import fetch, redis_server, served, wait_for


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(client, "LONGEST_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(client, "_JOINED", {})


asked: list[Snapshot] = []


@pytest.fixture
def monitor(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    token, line = new_token("write")
    monkeypatch.setenv("FORCEGAUGE_TOKEN", token)
    settings = Settings(
        storage=str(tmp_path / "storage"), roots=(str(tmp_path),), tokens=(line,), snapshot_every=1
    )
    asked.clear()
    with served(create_app(settings, store, asked.append)) as url:
        yield url


def gauge(folder: Path, url: str, **options: Any) -> ForceGauge:
    settings = {"run": "tiny", "every": 1, "budget": None, "port": 0, **options}
    return ForceGauge(
        tiny.probe_set(2), tiny.tokenizer(), directory=folder, monitor=url, **settings
    )


def test_a_watched_training_is_known_discovered_and_ended(
    monitor: str, store: Store, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("")
    with gauge(tmp_path, monitor, loss="dpo:sigmoid+sft", train=train) as watched:
        for step in range(3):
            watched.step(tiny.llama(), step, loss=float("inf"))
        (tmp_path / "checkpoint-2").mkdir()
        watched.saved(tmp_path / "checkpoint-2", 2)
        wait_for(lambda: asked)
        targets = json.loads(fetch(f"{monitor}/sd/targets")[1])
        assert targets[0]["targets"] == [f"127.0.0.1:{watched.port}"]
        assert (
            'forcegauge_probe_step{run="tiny"} 2.0'
            in fetch(f"http://{targets[0]['targets'][0]}/metrics")[1]
        )
    run = store.run("tiny")
    assert run is not None
    assert (run.state, run.verdict, run.step) == ("ended", "diverging", 2)
    assert {event.kind for event in store.events("tiny")} == {
        "phase",
        "verdict",
        "alarm",
        "checkpoint",
    }
    assert (asked[0].checkpoint, asked[0].step) == (str(tmp_path / "checkpoint-2"), 2)
    assert (asked[0].probes, asked[0].loss) == (str(tmp_path / "probes.jsonl"), "sigmoid")
    assert json.loads(fetch(f"{monitor}/sd/targets")[1]) == []


def test_while_redis_is_away_the_training_goes_on_and_what_happened_is_told_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    store = Store(f"unix://{folder}/redis.sock?db=0")
    with served(create_app(Settings(), store, lambda snapshot: None)) as url:
        with redis_server(folder):
            watched = gauge(tmp_path, url)
            watched.step(tiny.llama(), 0)
            wait_for(lambda: store.events("tiny"))
        for step in range(1, 3):
            watched.step(tiny.llama(), step, loss=float("inf"))
        wait_for(lambda: "HTTP 503" in caplog.text)
        # it comes back empty: the run registers anew
        with redis_server(folder):
            wait_for(lambda: "alarm" in {event.kind for event in store.events("tiny")})
            watched.close()
            run = store.run("tiny")
    store.close()
    assert run is not None
    assert (run.verdict, run.state) == ("diverging", "ended")


def test_a_second_phase_makes_the_ended_run_live_again(
    monitor: str, store: Store, tmp_path: Path
) -> None:
    for phase in ("sft", "dpo"):
        with gauge(tmp_path, monitor, phase=phase, loss=phase) as watched:
            watched.step(tiny.llama(), 0)
            wait_for(lambda: store.targets())
        assert store.targets() == []
    phases = [event.text for event in store.events("tiny") if event.kind == "phase"]
    assert phases == ["sft", "dpo"]


def test_another_live_run_of_the_name_is_refused_and_trains_on(
    monitor: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = gauge(tmp_path / "a", monitor)
    first.step(tiny.llama(), 0)
    wait_for(lambda: store.targets())
    # as from another process: within one, the newer takes over
    client._JOINED.clear()
    second = gauge(tmp_path / "b", monitor)
    second.step(tiny.llama(), 0)
    wait_for(lambda: "another run of this name is alive" in caplog.text)
    assert second.judgement is not None
    first.close()
    wait_for(lambda: store.targets())
    second.close()
    found = store.run("tiny")
    assert found is not None
    assert found.record_id != ""
    assert found.state == "ended"
