"""What a worker does with messages that come twice, too late or not at all, on a real Redis."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import Reject

from forcegauge.errors import InputError, RunError
from forcegauge_monitor import steps, storage
from forcegauge_monitor.broker import (
    PIECE,
    PREFIX,
    SCORES,
    make_app,
    send,
    submit,
    transport,
    waiting,
)
from forcegauge_monitor.chores import forget_old, unattended
from forcegauge_monitor.connection import connect
from forcegauge_monitor.heart import Heart
from forcegauge_monitor.records import Run, Snapshot
from forcegauge_monitor.settings import Settings, load_settings
from forcegauge_monitor.store import Store, open_store
from forcegauge_monitor.tasks import Crew
from tests.monitor.chaos import make_inputs
from tests.servers import redis_server, wait_for

# torch's forward-mode AD imports what it deprecates itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@dataclass
class Bench:
    """A worker's tasks without a worker: messages are taken out of Redis by the test."""

    settings: Settings
    store: Store
    app: Celery
    crew: Crew
    inputs: dict[str, str]

    def ask(self, run: str = "a", key: str = "one", step: int = 2, **facts: Any) -> Snapshot:
        known = {**self.inputs, "checkpoint": self.inputs["checkpoint"].replace("-2", f"-{step}")}
        asked = Snapshot(key, run, **{**known, "step": step, "loss": "dpo", **facts})
        return self.store.ask(asked)

    def messages(self, queue: str = "cpu") -> list[tuple[str, list[Any]]]:
        """Name and arguments of all that wait, in the order in which a worker gets them."""
        found = []
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            while (message := channel.basic_get(queue)) is not None:
                found.append((message.headers["task"], message.payload[0]))
                channel.basic_ack(message.delivery_tag)
        return found

    def work(self) -> None:
        """Do what the messages say until there are no more."""
        while found := self.messages():
            for name, arguments in found:
                getattr(self.crew, name.removeprefix("forcegauge."))(*arguments)

    def state(self, key: str = "one", run: str = "a") -> Snapshot:
        found = self.store.snapshot(run, key)
        assert found is not None
        return found

    def folder(self, key: str = "one", run: str = "a") -> Path:
        return storage.folder_of(self.settings, run, key)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = make_inputs(tmp_path_factory.mktemp("tasks") / "inputs")
    shutil.copytree(made["checkpoint"], made["checkpoint"].replace("-2", "-3"))
    return made


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def bench(redis_url: str, inputs: dict[str, str], tmp_path: Path) -> Iterator[Bench]:
    settings = load_settings(
        redis_url=redis_url,
        storage=str(tmp_path / "snapshots"),
        roots=str(Path(inputs["probes"]).parent),
        kernel_probes=0,
        lease_seconds=0.5,
    )
    store, app = open_store(settings), make_app(settings)
    store.register(Run("a", "first"))
    heart = Heart(lambda busy: None, None, 0.05)
    heart.start()
    yield Bench(settings, store, app, Crew(settings, store, app, heart, "worker"), inputs)
    heart.close()
    heart.join()
    store.forget("a")
    store.close()
    with app.connection_for_write() as connection:
        for queue in ("cpu", SCORES):
            connection.default_channel.queue_purge(queue)


def test_messages_lead_from_the_question_to_the_result(bench: Bench) -> None:
    send(bench.app, bench.ask())
    bench.work()
    found = bench.state()
    assert (found.state, found.reason) == ("done", "")
    assert found.pieces_done == found.pieces_total > 0
    assert found.metrics["attribution_nats"]["chosen"]["chosen"] > 0
    assert (Path(found.path) / "snapshot.html").is_file()
    assert not (Path(found.path) / "work").exists()


def test_every_message_twice_gives_one_result_and_little_work(bench: Bench) -> None:
    send(bench.app, bench.ask())
    done: list[str] = []
    while found := bench.messages():
        for name, arguments in [*found, *found]:
            done.append(name)
            getattr(bench.crew, name.removeprefix("forcegauge."))(*arguments)
    assert bench.state().state == "done"
    assert done.count("forcegauge.publish") == 2
    assert bench.store.overview().counts[("a", "done")] == 1


def test_a_piece_in_work_is_sent_before_the_next_snapshot_is_begun(bench: Bench) -> None:
    send(bench.app, bench.ask())
    bench.app.send_task("forcegauge.piece", ("b", "x", "y"), queue="cpu", priority=PIECE)
    assert [name for name, _ in bench.messages()] == ["forcegauge.piece", "forcegauge.start"]


def test_a_run_has_one_snapshot_at_a_time_and_the_next_one_follows(bench: Bench) -> None:
    bench.ask(key="one", step=2)
    bench.crew.start("a", "one")
    later = bench.ask(key="two", step=3)
    bench.crew.start("a", "two")
    assert bench.state("two").state == "queued"
    assert later.state == "queued"
    bench.work()
    assert [bench.state(key).state for key in ("one", "two")] == ["done", "done"]


def test_the_next_snapshot_is_compared_with_the_last_one(bench: Bench) -> None:
    for key, step in (("one", 2), ("two", 3)):
        send(bench.app, bench.ask(key=key, step=step))
        bench.work()
    compared = ["measured_change_nats" in bench.state(key).metrics for key in ("one", "two")]
    assert compared == [False, True]


def test_a_checkpoint_deleted_while_queued_fails_with_its_name(
    bench: Bench, tmp_path: Path
) -> None:
    shutil.copytree(bench.inputs["checkpoint"], tmp_path / "gone")
    bench.ask(checkpoint=str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(InputError, match="gone") as caught:
        bench.crew.start("a", "one")
    bench.crew.failed("a", "one", caught.value)
    assert bench.state().state == "failed"
    assert str(tmp_path / "gone") in bench.state().reason


def test_what_a_dead_worker_began_is_found_and_goes_on(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    lost = bench.messages()
    assert lost
    assert not unattended(bench.app, bench.store), "the lease still runs"
    wait_for(lambda: unattended(bench.app, bench.store))
    bench.crew.start("a", "one")
    bench.work()
    assert bench.state().state == "done"


def test_a_failed_snapshot_that_is_queued_again_goes_on_at_once(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    bench.messages()
    bench.crew.failed("a", "one", RunError("the disk is full."))
    assert bench.state().reason == "the disk is full"
    again = bench.store.requeue("a", "one")
    assert again is not None
    send(bench.app, again)
    bench.work()
    assert (bench.state().state, bench.state().reason) == ("done", "")


def test_what_has_a_message_waiting_is_not_sent_again(bench: Bench) -> None:
    wanted = bench.ask()
    assert [each.id for each in unattended(bench.app, bench.store)] == ["one"]
    send(bench.app, wanted)
    assert waiting(bench.app, "cpu") == [["a", "one"]]
    assert not unattended(bench.app, bench.store)


def test_what_is_lost_is_sent_again_however_much_else_waits(bench: Bench) -> None:
    bench.ask()
    bench.app.send_task("forcegauge.piece", ("b", "x", "y"), queue="cpu", priority=PIECE)
    with connect(bench.settings.redis_url) as client:
        client.lpush(f"{PREFIX}cpu", "no message", json.dumps({"body": "?"}))
    assert [each.id for each in unattended(bench.app, bench.store)] == ["one"]


def test_a_message_that_cannot_be_acknowledged_leaves_the_worker_reading(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(bench.app, bench.ask())
    with bench.app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, False)
        message = channel.basic_get("cpu")
        assert not channel.qos.can_consume()
        with monkeypatch.context() as patch:
            patch.setattr(channel.qos, "_remove_from_indices", _dead)
            message.ack_log_error(logging.getLogger(), connection.connection_errors)
        assert not message.acknowledged
        assert channel.qos.can_consume()


def _dead(*_: Any) -> None:
    raise redis.ConnectionError("Connection reset by peer")


def test_a_piece_that_takes_its_workers_down_is_given_up(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    _, (run, key, name) = bench.messages()[0]
    # as killed workers leave it
    (bench.folder() / "work" / f"{name}.tries").write_bytes(b"." * steps.TRIES)
    with pytest.raises(RunError, match="begun 5 times and each time its worker was killed"):
        bench.crew.piece(run, key, name)


def test_a_cancelled_snapshot_is_dropped_between_two_blocks(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    _, arguments = bench.messages()[0]
    bench.store.cancel("a", "one")
    bench.crew.piece(*arguments)
    assert not steps.done(bench.folder(), arguments[2])


def test_a_cancel_of_what_is_over_does_not_end_what_follows() -> None:
    heart, asked, over = Heart(lambda busy: None, None, 1), threading.Event(), threading.Event()

    def cancelled() -> bool:
        asked.set()
        return not over.wait(60)

    beat = threading.Thread(target=heart.beat)
    with heart.on(cancelled):
        beat.start()
        assert asked.wait(60)
    with heart.on(lambda: True):
        over.set()
        beat.join()
        heart.check()


def test_a_snapshot_that_is_planned_anew_is_opened_anew(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    before = steps.opened(bench.folder())
    bench.store.cancel("a", "one")
    steps.dropped(bench.folder())
    again = bench.store.requeue("a", "one")
    assert again is not None
    bench.crew.start("a", "one")
    assert steps.opened(bench.folder()) is not before


def test_a_worker_killed_while_it_plans_leaves_a_snapshot_that_tells_its_progress(
    bench: Bench,
) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    (bench.folder() / "work" / "total").unlink()
    wait_for(lambda: unattended(bench.app, bench.store) or bench.messages())
    wait_for(lambda: unattended(bench.app, bench.store))
    bench.crew.start("a", "one")
    assert steps.progress(bench.folder())[1] > 0


def test_a_piece_told_again_after_the_merge_leads_to_the_end(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    _, arguments = bench.messages()[0]
    while not steps.finished(bench.folder()):
        for name in steps.following(bench.folder(), again=True):
            if name == steps.MERGE:
                # as a worker leaves it that is killed before it tells the store
                steps.merged(bench.folder(), 0.0)
            else:
                steps.do(bench.folder(), name, lambda share: None)
    bench.crew.piece(*arguments)
    bench.work()
    assert bench.state().state == "done"


def test_work_that_hears_of_a_cancel_ends_at_its_next_block(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    _, arguments = bench.messages()[0]

    def slow(folder: Path, name: str, advance: Any) -> float:
        bench.store.cancel("a", "one")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            advance(0.1)
            time.sleep(0.01)
        return 10.0

    monkeypatch.setattr(steps, "do", slow)
    bench.crew.piece(*arguments)
    assert bench.state().state == "cancelled"
    assert not bench.folder().exists()


def test_a_worker_that_ends_gives_its_piece_back(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    _, arguments = bench.messages()[0]
    bench.crew.heart.stop()
    with pytest.raises(Reject) as caught:
        bench.crew.piece(*arguments)
    assert caught.value.requeue
    assert bench.state().state == "running"


def test_a_disk_that_takes_no_more_is_said(bench: Bench) -> None:
    bench.ask()
    bench.crew.start("a", "one")
    (_, first), (_, arguments), *_ = bench.messages()
    bench.crew.piece(*first)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            bench.crew.piece(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    bench.crew.piece(*arguments)
    assert steps.done(bench.folder(), arguments[2])


def test_results_go_to_a_bucket_and_come_back_for_the_next_one(
    bench: Bench, tmp_path: Path
) -> None:
    bucket = f"file://{tmp_path / 'bucket'}"
    bench.crew.settings = bench.settings.model_copy(
        update={"storage": bucket, "work": str(tmp_path / "work")}
    )
    for key, step in (("one", 2), ("two", 3)):
        send(bench.app, bench.ask(key=key, step=step))
        bench.work()
    assert bench.state("two").path == f"{bucket}/a/two"
    assert (tmp_path / "bucket" / "a" / "one" / "metrics.json").is_file()
    assert "measured_change_nats" in bench.state("two").metrics
    assert not (tmp_path / "work" / "a" / "two").exists()


@pytest.mark.parametrize("bucket", [False, True])
def test_retention_removes_the_arrays_of_what_it_forgets(
    bench: Bench, tmp_path: Path, bucket: bool
) -> None:
    places = {"storage": f"file://{tmp_path / 'bucket'}", "work": str(tmp_path / "work")}
    update: dict[str, Any] = {"retention_days": 1e-9, **(places if bucket else {})}
    bench.crew.settings = settings = bench.settings.model_copy(update=update)
    send(bench.app, bench.ask())
    bench.work()
    send(bench.app, bench.ask(key="two", step=3))
    for _, arguments in bench.messages():
        bench.crew.start(*arguments)
    forget_old(settings, bench.store)
    assert bench.state("two").state == "running"
    assert bench.state().state == "done"
    bench.work()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "metrics.json" for path in files)
    forget_old(settings, bench.store)
    assert bench.store.run("a") is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_arrays_that_cannot_be_removed_are_said_and_the_rest_is_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.ask()
    bench.store.fail("a", "one", "no memory")
    settings = bench.settings.model_copy(
        update={"retention_days": 1e-9, "storage": "none://key:hidden@bucket"}
    )
    forget_old(settings, bench.store)
    assert "a/one: none://bucket/a/one cannot be used" in caplog.text
    assert bench.store.run("a") is None


def test_a_storage_that_cannot_be_reached_is_said(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.json").write_text("{}")
    settings = bench.settings.model_copy(update={"storage": f"file://{tmp_path / 'file' / 'x'}"})
    with pytest.raises(RunError, match="cannot be written"):
        storage.put(settings, tmp_path / "one", "a", "one")


def test_a_url_is_told_without_its_password() -> None:
    assert storage.without_secret("s3://key:hidden@bucket/x") == "s3://bucket/x"


def test_what_cannot_be_sent_is_left_to_the_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(Settings(redis_url=f"unix://{tmp_path / 'nobody'}?db=0"))
    submit(app)(Snapshot("one", "a", "/c", 1, "/p", "/t"))
    assert "a/one will be sent later" in caplog.text


@pytest.mark.parametrize(
    ("url", "expected", "options"),
    [
        ("redis://:pw@h:1/2", "redis://:pw@h:1/2", {}),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3", {}),
        ("unix://:pw@/r.sock", "redis+socket://:pw@/r.sock?virtual_host=0", {}),
        (
            "redis+sentinel://:pw@a:1,b:2/main/4",
            "sentinel://:pw@a:1/4;sentinel://:pw@b:2/4",
            {"master_name": "main"},
        ),
    ],
)
def test_every_form_of_a_redis_url_has_one_for_celery(
    url: str, expected: str, options: dict[str, str]
) -> None:
    assert transport(url) == (expected, options)


def test_the_heart_beats_on_while_redis_is_away(tmp_path: Path) -> None:
    beats = threading.Semaphore(0)

    def fail(busy: bool) -> None:
        beats.release()
        raise OSError("away")

    heart = Heart(fail, tmp_path / "alive", 0.01)
    heart.start()
    assert all(beats.acquire(timeout=60) for _ in range(3))
    heart.close()
    heart.join()
    assert (tmp_path / "alive").exists()
