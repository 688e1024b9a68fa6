"""The monitor's commands against real processes: what people type, and what a worker survives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forcegauge.errors import InputError, RunError
from forcegauge_monitor.broker import make_app
from forcegauge_monitor.cli import monitor
from forcegauge_monitor.records import Run, Snapshot
from forcegauge_monitor.store import Store
from tests.monitor.chaos import make_inputs
from tests.monitor.fleet import Fleet, fleet
from tests.servers import wait_for


def call(*arguments: str) -> Result:
    return CliRunner().invoke(monitor, arguments, catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_inputs(tmp_path_factory.mktemp("cli") / "inputs")


@pytest.fixture(scope="module")
def running(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A monitor with a worker and a run, `lively`, that trains."""
    root = str(Path(inputs["probes"]).parent)
    folder = tmp_path_factory.mktemp("monitor")
    with fleet(folder, roots=root, kernel_probes=0, stale_seconds=3600) as made:
        facts = {"run": "lively", "record_id": "one", "probes": inputs["probes"]}
        made.insist("POST", "/runs", facts | {"train": inputs["train"], "loss": "dpo"})
        beat = {"record_id": "one", "step": 40, "verdict": "squeezing", "since_step": 20}
        made.insist("POST", "/runs/lively/heartbeat", beat | {"evidence": "", "events": []})
        wait_for(made.store.workers, 60)
        wait_for(lambda: made.store.overview().beat, 60)
        yield made


def settings(running: Fleet) -> tuple[str, str]:
    return "--settings", str(running.folder / "settings.json")


@pytest.mark.slow
def test_a_worker_survives_poison_and_takes_the_snapshot_that_comes_after(
    running: Fleet, inputs: dict[str, str]
) -> None:
    app = make_app(running.settings)
    for name, arguments in (
        ("forcegauge.start", ()),
        ("forcegauge.piece", ("lively", "none", {"no": "name"})),
        ("forcegauge.start", ([1], {"a": 2})),
        ("no.such.task", (1,)),
    ):
        app.send_task(name, arguments, queue="cpu", priority=0)
    with app.connection_for_write() as connection, connection.Producer() as producer:
        kinds = ((b"{no json", "application/json"), (b"x", "application/x-python-pickle"))
        for body, kind in kinds:
            producer.publish(body, routing_key="cpu", content_type=kind, content_encoding="utf-8")
    result = call(
        "snapshot", "--server", running.url, "--run", "lively", "--checkpoint", inputs["checkpoint"]
    )
    assert re.search(r"/lively/[0-9a-f]+: the snapshot, of step 2\.", result.output)


@pytest.mark.slow
def test_status_shows_runs_snapshots_and_workers(running: Fleet) -> None:
    shown = call("status", "--once", *settings(running)).output
    assert re.search(r"lively +active +squeezing +20 +40", shown)
    assert "worker-1" in shown
    assert re.search(r"beat +chores \d+ s ago", shown)


def test_status_says_where_no_beat_runs(store: Store, shared_redis: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"redis_url": shared_redis}))
    shown = call("status", "--once", "--settings", str(tmp_path / "s.json")).output
    assert re.search(r"beat +none", shown)


@pytest.mark.slow
def test_runs_can_be_read_by_programs(running: Fleet) -> None:
    [line] = call("runs", "--json", *settings(running)).output.splitlines()
    assert json.loads(line)["verdict"] == "squeezing"


@pytest.mark.slow
def test_what_failed_is_listed_with_its_reason_and_can_be_queued_again(
    running: Fleet, inputs: dict[str, str], tmp_path: Path
) -> None:
    names = {name: inputs[name] for name in ("probes", "train")}
    gone = str(Path(inputs["probes"]).parent / "checkpoint-7")
    running.insist("POST", "/runs/lively/snapshots", {"checkpoint": gone, "loss": "dpo", **names})
    [failed] = wait_for(running.store.dead, 60)
    assert gone in call("requeue", *settings(running)).output
    name = f"lively/{failed.id}"
    assert f"{name} is queued again" in call("requeue", name, *settings(running)).output
    wait_for(lambda: [one for one in running.store.dead() if one.finished != failed.finished], 60)


@pytest.mark.slow
def test_a_snapshot_that_fails_is_one_line(running: Fleet) -> None:
    gone = str(Path(running.settings.roots[0]) / "checkpoint-8")
    with pytest.raises(RunError, match=r"is failed: .*checkpoint-8"):
        call("snapshot", "--server", running.url, "--run", "lively", "--checkpoint", gone)


@pytest.mark.slow
def test_what_the_monitor_refuses_is_told_as_it_says_it(running: Fleet) -> None:
    elsewhere = ("--run", "lively", "--checkpoint", "/etc/checkpoint-1")
    with pytest.raises(InputError, match="lies under no allowed root"):
        call("snapshot", "--server", running.url, *elsewhere)
    with pytest.raises(InputError, match="No run nobody is known"):
        call("snapshot", "--server", running.url, "--run", "nobody", "--checkpoint", "/c-1")


def test_without_a_monitor_one_line_says_so() -> None:
    asked = ("--run", "a", "--checkpoint", "/c/checkpoint-1")
    with pytest.raises(RunError, match="no monitor answers"):
        call("snapshot", "--server", "http://127.0.0.1:9", *asked)


def test_without_redis_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"redis_url": "redis://127.0.0.1:9/0"}')
    for command in (("runs",), ("status", "--once"), ("requeue",)):
        with pytest.raises(RunError, match="Redis cannot be reached"):
            call(*command, "--settings", str(tmp_path / "s.json"))


def test_only_what_failed_can_be_queued_again(
    store: Store, shared_redis: str, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"redis_url": shared_redis}))
    store.register(Run("a", "first"))
    store.ask(Snapshot("one", "a", "/c/1", 1, "/p", "/t"))
    with pytest.raises(InputError, match="a/one is no snapshot that failed"):
        call("requeue", "a/one", "--settings", str(tmp_path / "s.json"))


def test_a_token_goes_to_the_client_and_its_hash_to_the_monitor() -> None:
    words = call("token", "read").output.split()
    [token] = [word for word in words if word.startswith("fg_")]
    [line] = [word for word in words if word.startswith("read:")]
    assert token not in line


def test_a_missing_package_of_the_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"no module uvicorn.*pip install 'forcegauge\[monitor\]'"):
        call("serve")
