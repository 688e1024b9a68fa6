"""Everything that touches Redis: runs, snapshots, workers and watched folders.

Every change is one script, so that it is made whole or not at all, whoever dies meanwhile. Nothing
scans: what is listed is in an index. Keys begin with `scripts.PREFIX`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from redis.exceptions import LockError, RedisError

from forcegauge_monitor import scripts
from forcegauge_monitor.connection import connect
from forcegauge_monitor.records import (
    CLOSED,
    Event,
    Run,
    Snapshot,
    Unannotated,
    Watch,
    Worker,
    from_json,
    to_json,
)
from forcegauge_monitor.scripts import PREFIX
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.totals import EXPORTED, Overview, result, stage

Unavailable = RedisError
"""What every method raises while Redis is away or refuses."""

WORKER_SECONDS = 60.0
"""A worker that says nothing for so long is gone."""

Json = dict[str, Any]


class TakenError(Exception):
    """The name belongs to another live record."""


class UnknownRunError(Exception):
    """No run of this name is known."""


class Store:
    """The monitor's memory in one Redis; safe to share between threads.

    ``stale_seconds`` after its last heartbeat a run is stale; ``lease_seconds`` after the last
    `progress` nobody works on a snapshot any more.
    """

    def __init__(
        self,
        url: str,
        *,
        stale_seconds: float = 60.0,
        lease_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = connect(url)
        self._stale, self._lease, self._clock = stale_seconds, lease_seconds, clock

    def ping(self) -> None:
        """Raise `Unavailable` when Redis does not answer."""
        self._redis.ping()

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()

    def register(self, run: Run) -> str:
        """Make a run known: ``created``, or ``same`` when it is of the same record.

        Raises `TakenError` while another record of this name is live; one that is stale or ended
        is forgotten.
        """
        now = self._clock()
        labels = {"cluster": run.cluster, "namespace": run.namespace}
        target = {
            "targets": [run.address],
            "labels": {name: value for name, value in labels.items() if value},
        }
        told = json.dumps(target) if run.address else ""
        facts = json.dumps(to_json(run))
        answer = self._run(
            scripts.REGISTER, run.run, run.record_id, facts, told, now, now - self._stale
        )
        if answer == "taken":
            raise TakenError(run.run)
        return str(answer)

    def heartbeat(
        self, name: str, record_id: str, beat: Mapping[str, Any], events: Sequence[Event] = ()
    ) -> list[str]:
        """Note how a run is (``step, verdict, since_step, evidence``) and what happened.

        Returns the ids of the events that need not be told again: told twice, one counts once.
        Raises `UnknownRunError` and `TakenError`.
        """
        now = self._clock()
        told = [part for each in events for part in (each.id, json.dumps(to_json(each)))]
        text = json.dumps({**beat, "seen": now})
        verdict = str(beat.get("verdict", "warming"))
        self._owned(name, self._run(scripts.HEARTBEAT, name, record_id, text, verdict, now, *told))
        return [each.id for each in events]

    def end(self, name: str, record_id: str, reason: str) -> None:
        """Note that a run ended; raises `UnknownRunError` and `TakenError`."""
        now = self._clock()
        text = json.dumps({"ended": now, "reason": reason})
        self._owned(name, self._run(scripts.END, name, record_id, text, now))

    def _owned(self, name: str, answer: Any) -> None:
        if answer == "unknown":
            raise UnknownRunError(name)
        if answer == "taken":
            raise TakenError(name)

    def run(self, name: str) -> Run | None:
        """A run as it is now; None when it is not known."""
        found = self._runs([name])
        return found[0] if found else None

    def runs(self, offset: int = 0, limit: int = 100) -> tuple[list[Run], int]:
        """Runs, the newest first, and how many there are in all."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrevrange(f"{PREFIX}created", offset, offset + limit - 1)
        pipe.zcard(f"{PREFIX}created")
        names, total = pipe.execute()
        return self._runs(names), int(total)

    def _runs(self, names: Sequence[str]) -> list[Run]:
        if not names:
            return []
        pipe = self._redis.pipeline()
        for table in ("runs", "beats", "ended"):
            pipe.hmget(f"{PREFIX}{table}", list(names))
        for index in ("created", "live", "known"):
            pipe.zmscore(f"{PREFIX}{index}", list(names))
        return [
            self._as_run(*columns) for columns in zip(*pipe.execute(), strict=True) if columns[0]
        ]

    def _as_run(
        self,
        facts: str,
        beat: str | None,
        ended: str | None,
        created: float,
        live: float | None,
        known: float,
    ) -> Run:
        fresh = live is not None and live >= self._clock() - self._stale
        state = "ended" if ended else "active" if fresh else "stale"
        values = {**json.loads(facts), **json.loads(beat or "{}"), **json.loads(ended or "{}")}
        return from_json(Run, {**values, "created": created, "seen": known, "state": state})

    def events(self, name: str) -> list[Event]:
        """The last events of a run, the oldest first."""
        lines = self._redis.lrange(f"{PREFIX}events:{name}", 0, -1)
        return [_event(line) for line in lines]

    def unannotated(self, limit: int) -> list[Unannotated]:
        """Events that Grafana was not told yet, the run that waits longest first."""
        return [
            Unannotated(run, record_id, done, [_event(line) for line in lines])
            for run, record_id, done, lines in self._run(scripts.UNANNOTATED, limit)
        ]

    def annotated(self, run: str, record_id: str, done: int) -> None:
        """Of a run's events, all up to this one need not be told Grafana again."""
        self._run(scripts.ANNOTATED, run, record_id, done)

    @contextmanager
    def alone(self, name: str, seconds: float) -> Iterator[bool]:
        """Whether nobody else is at a chore just now, for so long at most."""
        lock = self._redis.lock(f"{PREFIX}{name}", timeout=seconds, blocking=False)
        mine = lock.acquire()
        try:
            yield mine
        finally:
            with suppress(LockError):
                lock.release()

    def targets(self, now: float | None = None) -> list[str]:
        """What Prometheus discovers: an ``http_sd`` item as JSON text for each live run."""
        pipe = self._redis.pipeline()
        pipe.eval(scripts.REAP, 0, self._fresh(now))
        pipe.hvals(f"{PREFIX}targets")
        found: list[str] = pipe.execute()[1]
        return found

    def overview(self, now: float | None = None) -> Overview:
        """All that is exported, in one pipelined read."""
        pipe = self._redis.pipeline()
        pipe.eval(scripts.REAP, 0, self._fresh(now))
        for index in ("created", "live", "dead"):
            pipe.zcard(f"{PREFIX}{index}")
        pipe.hlen(f"{PREFIX}ended")
        pipe.get(f"{PREFIX}beat")
        for table in ("verdicts", "results", "counts", "stages", "workers", "scores"):
            pipe.hgetall(f"{PREFIX}{table}")
        _, known, live, dead, ended, beat, verdicts, results, counts, stages, workers, scores = (
            pipe.execute()
        )
        return Overview(
            known=known,
            live=live,
            ended=ended,
            failed=dead,
            beat=None if beat is None else float(beat),
            verdicts=verdicts,
            results={run: result(text) for run, text in results.items()},
            counts={_pair(key, "|"): int(count) for key, count in counts.items()},
            stages={_pair(key, "/"): stage(text) for key, text in stages.items()},
            workers=self._living(workers.values(), now),
            scores={run: json.loads(text) for run, text in scores.items()},
        )

    def reap(self, now: float | None = None) -> list[str]:
        """Take runs that were not heard of out of discovery; their names."""
        return list(self._run(scripts.REAP, self._fresh(now)))

    def forget(self, name: str) -> None:
        """Drop all that is known of a run, its snapshots too."""
        self._run(scripts.FORGET, name)

    def expire(self, now: float, retention_seconds: float) -> list[str]:
        """Forget runs that were not heard of for so long, but none at work; their names."""
        return list(self._run(scripts.EXPIRE, now - retention_seconds))

    def expiring(self, now: float, retention_seconds: float) -> list[str]:
        """Runs that were not heard of for so long, also those at work."""
        since = now - retention_seconds
        return [str(n) for n in self._redis.zrangebyscore(f"{PREFIX}known", "-inf", f"({since}")]

    def ask(self, snapshot: Snapshot) -> Snapshot:
        """Queue a snapshot, or find the one that answers the same question already.

        Queued ones of the run's earlier steps are superseded.
        """
        now = self._clock()
        made = {**to_json(snapshot), "created": now, "state": "queued"}
        values = [part for name, value in made.items() for part in (name, json.dumps(value))]
        key = self._run(
            scripts.ASK,
            *(snapshot.run, snapshot.id, snapshot.question, snapshot.step, now),
            *values,
        )
        found = self.snapshot(snapshot.run, str(key))
        if found is None:
            raise Unavailable(f"{snapshot.run}/{key} was forgotten")
        return found

    def snapshot(self, run: str, key: str) -> Snapshot | None:
        """One snapshot; None when it is not known."""
        found = self._snapshots([(run, key)])
        return found[0] if found else None

    def snapshots(self, run: str) -> list[Snapshot]:
        """A run's snapshots, the oldest first."""
        keys = self._redis.zrange(f"{PREFIX}snapshots:{run}", 0, -1)
        return self._snapshots([(run, str(key)) for key in keys])

    def unattended(self) -> list[Snapshot]:
        """Open snapshots of runs on which nobody works, the oldest first."""
        members = [_pair(each, "/") for each in self._redis.zrange(f"{PREFIX}open", 0, -1)]
        pipe = self._redis.pipeline(transaction=False)
        for run, _ in members:
            pipe.exists(f"{PREFIX}lease:{run}")
        held = pipe.execute() if members else []
        left = [member for member, leased in zip(members, held, strict=True) if not leased]
        return self._snapshots(left)

    def dead(self) -> list[Snapshot]:
        """Failed snapshots, the oldest first."""
        members = self._redis.zrange(f"{PREFIX}dead", 0, -1)
        return self._snapshots([_pair(each, "/") for each in members])

    def _snapshots(self, members: Sequence[tuple[str, str]]) -> list[Snapshot]:
        pipe = self._redis.pipeline(transaction=False)
        for run, key in members:
            pipe.hgetall(f"{PREFIX}snapshot:{run}:{key}")
        rows = [row for row in (pipe.execute() if members else []) if row]
        return [
            from_json(Snapshot, {name: json.loads(text) for name, text in row.items()})
            for row in rows
        ]

    def begin(self, run: str, key: str, worker: str) -> bool:
        """Take a snapshot: false when it is over, another one of the run is running, or another
        worker holds its lease."""
        lease = int(self._lease * 1000)
        return bool(self._run(scripts.BEGIN, run, key, worker, lease, self._clock()))

    def progress(self, run: str, key: str, done: int, total: int) -> str:
        """Renew the lease of a running snapshot: ``go``, or ``cancel`` when it is not wanted."""
        lease = int(self._lease * 1000)
        return "go" if self._run(scripts.PROGRESS, run, key, done, total, lease) else "cancel"

    def finish(self, run: str, key: str, path: str, metrics: Mapping[str, Any]) -> bool:
        """A running snapshot is done; false when it was not running."""
        shown = {name: metrics[name] for name in EXPORTED if metrics.get(name) is not None}
        texts = [path, metrics, shown]
        return self._close(run, key, "running", "done", "", *map(json.dumps, texts))

    def fail(self, run: str, key: str, reason: str) -> bool:
        """A queued or running snapshot cannot be had, and why; false when it was over already."""
        return self._close(run, key, "queued running", "failed", reason)

    def cancel(self, run: str, key: str) -> bool:
        """A queued or running snapshot is not wanted; false when it was over already."""
        return self._close(run, key, "queued running", "cancelled", "cancelled")

    def _close(self, run: str, key: str, before: str, state: str, reason: str, *more: str) -> bool:
        facts = (run, key, before, state, json.dumps(reason), self._clock())
        return bool(self._run(scripts.CLOSE, *facts, *more))

    def requeue(self, run: str, key: str) -> Snapshot | None:
        """Queue a snapshot again that failed, was cancelled or superseded; None for any other."""
        found = self.snapshot(run, key)
        if found is None or found.state not in CLOSED:
            return None
        done = self._run(scripts.REQUEUE, run, key, found.question, self._clock())
        return self.snapshot(run, key) if done else None

    def worker_alive(self, name: str, queue: str, busy: bool) -> None:
        """A worker lives."""
        worker = Worker(name, queue, busy, self._clock())
        self._redis.hset(f"{PREFIX}workers", name, json.dumps(to_json(worker)))

    def workers(self, now: float | None = None) -> list[Worker]:
        """Workers that live; those that do not are dropped."""
        known = self._redis.hgetall(f"{PREFIX}workers")
        living = self._living(known.values(), now)
        if gone := known.keys() - {worker.name for worker in living}:
            self._redis.hdel(f"{PREFIX}workers", *gone)
        return living

    def beat_alive(self) -> None:
        """A beat does its chores."""
        self._redis.set(f"{PREFIX}beat", self._clock())

    def _living(self, texts: Iterable[Any], now: float | None) -> list[Worker]:
        since = (self._clock() if now is None else now) - WORKER_SECONDS
        workers = [from_json(Worker, json.loads(text)) for text in texts]
        return [worker for worker in workers if worker.seen >= since]

    def watch(self, watch: Watch) -> None:
        """Watch a folder for a run, in the place of the one that it had."""
        self._redis.hset(f"{PREFIX}watches", watch.run, json.dumps(to_json(watch)))

    def unwatch(self, run: str) -> bool:
        """Watch a run's folder no more; false when none was."""
        return bool(self._redis.hdel(f"{PREFIX}watches", run))

    def watches(self) -> list[Watch]:
        """The watched folders."""
        return [
            from_json(Watch, json.loads(text)) for text in self._redis.hvals(f"{PREFIX}watches")
        ]

    def scored(self, run: str, rows: Sequence[tuple[str, Sequence[str], float]]) -> None:
        """Keep the metrics of a watched folder's last checkpoint: name, label values and value."""
        self._redis.hset(f"{PREFIX}scores", run, json.dumps(rows))

    def _fresh(self, now: float | None) -> float:
        return (self._clock() if now is None else now) - self._stale

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._redis.register_script(script)(args=arguments)


def open_store(settings: Settings) -> Store:
    """The store that the settings name; raises `InputError` for a URL that is none."""
    return Store(
        settings.redis_url,
        stale_seconds=settings.stale_seconds,
        lease_seconds=settings.lease_seconds,
    )


def _event(line: Any) -> Event:
    return from_json(Event, json.loads(line))


def _pair(text: Any, separator: str) -> tuple[str, str]:
    first, _, second = str(text).rpartition(separator)
    return first, second
