"""What beat does every so often: stale runs, retention, work nobody does, folders with checkpoints,
annotations.

Beat does these itself and sends no message for them: they take milliseconds, and a worker may be
busy for hours. Each may be done by two beats at once, and none remembers anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from kombu.exceptions import OperationalError

from forcegauge.errors import RunError
from forcegauge.textfiles import first_line
from forcegauge_monitor import storage
from forcegauge_monitor.annotations import Annotator
from forcegauge_monitor.broker import SCORES, make_app, send, waiting
from forcegauge_monitor.records import Snapshot
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store, Unavailable, open_store

logger = logging.getLogger(__name__)

REAP_SECONDS = 10.0
RETAIN_SECONDS = 600.0
WATCH_SECONDS = 30.0
ANNOTATE_SECONDS = 10.0
ALIVE_SECONDS = 10.0


class Chores(Scheduler):  # type: ignore[misc]
    """Celery's schedule, but what is due is done here and at once."""

    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> None:
        """Do a chore; while Redis is away that is said, and it is due again later."""
        try:
            self.app.tasks[entry.task].run()
        except (Unavailable, OperationalError) as error:
            logger.warning("%s: Redis cannot be reached (%s)", entry.name, first_line(error))


def add_chores(app: Celery, settings: Settings, store: Store) -> None:
    """Give the application its chores and their schedule."""

    def reap() -> None:
        store.beat_alive()
        for run in store.reap():
            logger.info("%s sends no heartbeats any more", run)

    def retain() -> None:
        forget_old(settings, store)

    def sweep() -> None:
        for snapshot in unattended(app, store):
            logger.info("%s/%s is sent again: nobody is at it", snapshot.run, snapshot.id)
            send(app, snapshot)

    def watch() -> None:
        for each in store.watches():
            app.send_task("forcegauge.score", (each.run,), queue=SCORES, expires=WATCH_SECONDS)

    chores = {
        reap: REAP_SECONDS,
        retain: RETAIN_SECONDS,
        sweep: settings.lease_seconds / 2,
        watch: WATCH_SECONDS,
    }
    if settings.grafana_url:
        chores[Annotator(settings, store).annotate] = ANNOTATE_SECONDS
    _schedule(app, chores)


def _schedule(app: Celery, chores: dict[Callable[[], None], float]) -> None:
    schedule = {}
    for chore, every in chores.items():
        task = app.task(chore, name=f"forcegauge.{chore.__name__}", shared=False)
        schedule[chore.__name__] = {"task": task.name, "schedule": every}
    app.conf.update(beat_scheduler=Chores, beat_schedule=schedule)


def add_alive(app: Celery, file: Path) -> None:
    """Have the file touched in between, so that a chore that hangs is seen by its age."""

    def touch() -> None:
        file.touch()

    touch()
    task = app.task(touch, name="forcegauge.alive", shared=False)
    app.conf.beat_schedule["alive"] = {"task": task.name, "schedule": ALIVE_SECONDS}


def forget_old(settings: Settings, store: Store) -> None:
    """Forget runs that were not heard of for long, and remove their snapshots' arrays."""
    now, seconds = time.time(), settings.retention_days * 86400
    # first: what is forgotten cannot be found any more
    _remove_files(settings, store, store.expiring(now, seconds))
    for run in store.expire(now, seconds):
        logger.info("%s is forgotten", run)


def _remove_files(settings: Settings, store: Store, runs: list[str]) -> None:
    """Remove the arrays of runs, but of none at work; what refuses is said and left."""
    for run in runs:
        known = store.snapshots(run)
        for snapshot in known if all(each.state != "running" for each in known) else []:
            try:
                storage.remove(settings, snapshot)
            except RunError as error:
                logger.warning("%s/%s: %s", run, snapshot.id, first_line(error))


def unattended(app: Celery, store: Store) -> list[Snapshot]:
    """Snapshots to be sent again: nobody works on them, and no message of theirs waits.

    Of a run, what runs already comes first, or else the oldest.
    """
    first: dict[str, Snapshot] = {}
    for snapshot in store.unattended():
        if snapshot.run not in first or snapshot.state == "running":
            first[snapshot.run] = snapshot
    queues = {one.queue for one in first.values()}
    sent = [arguments[:2] for queue in queues for arguments in waiting(app, queue)]
    return [one for one in first.values() if [one.run, one.id] not in sent]


def run_beat(settings: Settings, alive_file: Path | None = None) -> None:
    """Do the chores until SIGTERM or Ctrl-C."""
    app = make_app(settings)
    add_chores(app, settings, open_store(settings))
    if alive_file is not None:
        add_alive(app, alive_file)
    # a line for every chore that was due would hide the ones that tell something
    logging.getLogger("celery.beat").setLevel(logging.WARNING)
    app.Beat(loglevel="INFO", quiet=True).run()
