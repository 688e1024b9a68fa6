"""Celery's tasks: a snapshot is begun, done piece by piece, merged and published.

The files of the snapshot's folder are the truth, messages only say where to look: a message that is
lost or comes twice costs time, never a result. Whoever finishes the last piece of a stage sends the
pieces of the next one; what nobody works on is sent again by the sweep (`chores`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery, Task, current_task
from celery.exceptions import Reject
from celery.signals import worker_process_init, worker_shutting_down

from forcegauge.errors import InputError, RunError
from forcegauge.textfiles import first_line
from forcegauge_monitor import steps, storage
from forcegauge_monitor.broker import END, PIECE, make_app, send, submit
from forcegauge_monitor.connection import AWAY
from forcegauge_monitor.entk.samples import Loss
from forcegauge_monitor.heart import CancelledError, Heart, StoppedError
from forcegauge_monitor.job import Settings as Asked
from forcegauge_monitor.records import Snapshot, allowed
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store, open_store

logger = logging.getLogger(__name__)

RETRIES = 4
HEART_SECONDS = 2.0

PAUSES = (0.2, 0.5, *(1.0,) * 9, *(5.0,) * 22)
"""Seconds between two calls while Redis is away: two minutes in all."""

T = TypeVar("T")


def run_worker(
    settings: Settings,
    *,
    name: str,
    queues: Sequence[str],
    pool: str = "solo",
    concurrency: int = 1,
    alive_file: Path | None = None,
    idle_seconds: float | None = None,
) -> int:
    """Work until SIGTERM or Ctrl-C, or until there was no work for so long (solo pool), and return
    the exit code. A piece that is being done then goes back to the queue after its next block (solo
    pool) or is finished (prefork)."""
    store, app = open_store(settings), make_app(settings)

    def alive(busy: bool) -> None:
        own = name if concurrency == 1 else f"{name}-{os.getpid()}"
        store.worker_alive(own, ",".join(queues), busy)
        if idle_seconds is not None and heart.idle_seconds >= idle_seconds:
            os.kill(os.getpid(), signal.SIGTERM)

    heart = Heart(alive, alive_file, HEART_SECONDS)
    add_tasks(app, Crew(settings, store, app, heart, name))
    worker_process_init.connect(lambda **_: heart.start(), weak=False)
    worker_shutting_down.connect(lambda **_: heart.stop(), weak=False)
    quiet = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
    program = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        queues=list(queues),
        pool=pool,
        concurrency=concurrency,
        loglevel="INFO",
        **quiet,
    )
    program.start()
    return int(program.exitcode or 0)


class SnapshotTask(Task):  # type: ignore[misc]
    """A task on a snapshot (run and id are its first arguments) that may fail for good."""

    crew: Crew

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Refuse what no part of the monitor has sent."""
        if kwargs or not all(isinstance(each, str) for each in args):
            raise InputError(f"{self.name} understands no such message")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """The retries are used up, or none would help."""
        if len(args) >= 2:
            self.crew.failed(str(args[0]), str(args[1]), exc)


def add_tasks(app: Celery, crew: Crew) -> None:
    """Give the application the tasks of a worker.

    What fails is tried again after 2, 4, 8 and 16 seconds at most, each time a random part of it;
    users' mistakes are not tried again.
    """
    for work in (crew.start, crew.piece, crew.publish):
        task = app.task(
            work,
            name=f"forcegauge.{work.__name__}",
            shared=False,
            base=SnapshotTask,
            autoretry_for=(Exception,),
            dont_autoretry_for=(InputError, Reject, TypeError),
            max_retries=RETRIES,
            retry_backoff=2,
            retry_jitter=True,
        )
        task.crew = crew
    app.task(crew.score, name="forcegauge.score", shared=False)


class Crew:
    """What the tasks of one worker process share."""

    def __init__(
        self, settings: Settings, store: Store, app: Celery, heart: Heart, name: str
    ) -> None:
        self.settings, self.store, self.app = settings, store, app
        self.heart, self.name = heart, name
        self._said = set[str]()

    def start(self, run: str, key: str) -> None:
        """Begin a snapshot, or go on where nobody does; only one of a run runs at a time."""
        begun = self._patiently(lambda: self.store.begin(run, key, self.name))
        if begun or (current_task and current_task.request.retries):
            self._on(run, key, self._start)

    def piece(self, run: str, key: str, name: str) -> None:
        """Do one piece, and send the next stage's where it was the last one."""
        self._on(run, key, lambda now, folder: self._piece(now, folder, name))

    def publish(self, run: str, key: str) -> None:
        """Merge the pieces, put the result where it belongs, and say that it is done."""
        self._on(run, key, self._publish)

    def score(self, run: str) -> None:
        """Score what is new in a run's watched folder, unless another worker does just now."""
        from forcegauge_monitor.scoring import score

        for watch in self._patiently(self.store.watches):
            if watch.run == run:
                with self.heart.on(lambda: True):
                    score(self.settings, self.store, submit(self.app), watch, self._said)

    def failed(self, run: str, key: str, error: Exception) -> None:
        """Note for good why a snapshot cannot be had."""
        reason = first_line(error) if isinstance(error, InputError | RunError) else _named(error)
        logger.error("%s/%s failed: %s", run, key, reason)
        self._patiently(lambda: self.store.fail(run, key, reason))
        self._send_queued(run)

    def _on(self, run: str, key: str, work: Callable[[Snapshot, Path], None]) -> None:
        """Work on a snapshot that is running, and only on such a one, under its lease."""
        snapshot = self._patiently(lambda: self.store.snapshot(run, key))
        if snapshot is None or snapshot.state != "running":
            return
        folder = storage.folder_of(self.settings, run, key)
        try:
            with self.heart.on(lambda: self._renewed(snapshot, folder)):
                work(snapshot, folder)
        except CancelledError:
            steps.dropped(folder)
            self._send_queued(run)
        except StoppedError:
            raise Reject("the worker ends", requeue=True) from None

    def _renewed(self, snapshot: Snapshot, folder: Path) -> bool:
        """Renew the lease; false when the snapshot was cancelled."""
        done, total = steps.progress(folder)
        return self.store.progress(snapshot.run, snapshot.id, done, total) == "go"

    def _start(self, snapshot: Snapshot, folder: Path) -> None:
        if not steps.planned(folder):
            steps.start(self._asked(snapshot), folder)
        # nobody works on it, so that what was told before is told to nobody
        self._send_following(snapshot, folder, again=True)

    def _piece(self, snapshot: Snapshot, folder: Path, name: str) -> None:
        if not steps.done(folder, name):
            seconds = steps.do(folder, name, lambda share: self.heart.check())
            logger.info("%s/%s: %s took %.3f s", snapshot.run, snapshot.id, name, seconds)
        self._send_following(snapshot, folder)

    def _publish(self, snapshot: Snapshot, folder: Path) -> None:
        metrics = steps.merged(folder, snapshot.started or time.time())
        place = storage.put(self.settings, folder, snapshot.run, snapshot.id)
        self._patiently(lambda: self.store.finish(snapshot.run, snapshot.id, place, metrics))
        storage.tidy(self.settings, folder)
        # the memory of its model is for others until the next snapshot
        steps.close()
        self._send_queued(snapshot.run)

    def _asked(self, snapshot: Snapshot) -> Asked:
        """What the snapshot is asked for; compared with the run's last one before it, and with the
        model that the run started from."""
        run = self._patiently(lambda: self.store.run(snapshot.run))
        known = self._patiently(lambda: self.store.snapshots(snapshot.run))
        earlier = [one for one in known if one.state == "done" and one.step < snapshot.step]
        previous = max(earlier, key=lambda one: one.step, default=None)
        start = run.model if run is not None and allowed(self.settings, run.model) else None
        return Asked(
            checkpoint=snapshot.checkpoint,
            probes=snapshot.probes,
            train=snapshot.train,
            loss=snapshot.loss,
            beta=snapshot.beta,
            reference=start if Loss(snapshot.loss, snapshot.beta).needs_reference else None,
            samples=self.settings.samples,
            kernel_probes=self.settings.kernel_probes,
            previous=str(storage.fetched(self.settings, previous)) if previous else None,
        )

    def _send_following(self, snapshot: Snapshot, folder: Path, again: bool = False) -> None:
        for name in steps.following(folder, again=again):
            ends = name == steps.MERGE
            self.app.send_task(
                "forcegauge.publish" if ends else "forcegauge.piece",
                (snapshot.run, snapshot.id) if ends else (snapshot.run, snapshot.id, name),
                queue=snapshot.queue,
                priority=END if ends else PIECE,
            )

    def _send_queued(self, run: str) -> None:
        """The run has no snapshot running any more: its next one may begin."""
        for each in self._patiently(lambda: self.store.snapshots(run)):
            if each.state == "queued":
                send(self.app, each)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the store, and again while Redis is away."""
        for pause in PAUSES:
            try:
                return call()
            except AWAY:
                time.sleep(pause)
        return call()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
