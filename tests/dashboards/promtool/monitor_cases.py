"""Cases for the alerts about the monitor, its store, its workers and its snapshots."""

from __future__ import annotations

from tests.dashboards.promtool.case import GONE, MONITOR, Case, Labels, missing, named, values

HERE = {"namespace": "fg"}
THERE = MONITOR | {"cluster": "c2"}
OF_THERE = HERE | {"cluster": "c2"}
REPLICA = MONITOR | {"instance": "m:8791"}
QUEUE = HERE | {"queue": "cpu"}


def store(text: str, labels: Labels = MONITOR) -> dict[str, str]:
    return {named("monitor_store_up", labels): text}


def monitor_cases() -> list[Case]:
    gone = store(values((1, 11), GONE))
    day = store(values((1, 3), GONE))
    return [
        Case("it fires ten minutes after the last answer", gone, {"20m": (), "21m": (HERE,)}),
        Case("it fires for a day", day, {"1450m": (HERE,), "1455m": ()}, every="5m"),
        Case(
            "a restart is silent",
            store(values((1, 11), missing(8), (1, 20))),
            {f"{k}m": () for k in (12, 18, 20, 30)},
        ),
        Case(
            "it resolves", store(values((1, 11), missing(20), (1, 20))), {"30m": (HERE,), "31m": ()}
        ),
        Case(
            "one of two processes goes on",
            gone | store(values((1, 60)), REPLICA),
            {"21m": (), "40m": ()},
        ),
        Case(
            "the monitor of another cluster is another one",
            gone | store(values((1, 60)), THERE),
            {"30m": (HERE,)},
        ),
        Case("one that was never there is silent", {}, {"30m": ()}),
    ]


def store_cases() -> list[Case]:
    return [
        Case(
            "it fires when Redis is away for five minutes",
            store(values((1, 10), (0, 20), (1, 10))),
            {"14m": (), "15m": (HERE,), "29m": (HERE,), "30m": ()},
        ),
        Case(
            "a restart of Redis is silent",
            store(values((1, 10), (0, 4), (1, 30))),
            {f"{k}m": () for k in (12, 14, 16, 30)},
        ),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            store(values((1, 10), (0, 2), missing(3), (0, 10), GONE)),
            {"14m": (), "15m": (HERE,), "24m": (HERE,), "29m": (HERE,), "30m": ()},
        ),
        Case(
            "one of two processes is enough",
            store(values((0, 30))) | store(values((1, 30)), REPLICA),
            {"10m": (HERE,)},
        ),
        Case(
            "the store of another cluster is another one",
            store(values((0, 30)), THERE) | store(values((1, 30))),
            {"10m": (OF_THERE,)},
        ),
    ]


def beat(last: str, labels: Labels = MONITOR) -> dict[str, str]:
    """When beat was last at work, by the minute, beside a store that answers."""
    return store(values((1, 60)), labels) | {named("monitor_beat_timestamp_seconds", labels): last}


ALWAYS = "0+60x60"
UNTIL_TEN = "0+60x10 600+0x50"


def beat_cases() -> list[Case]:
    fires = {"16m": (), "17m": (HERE,), "50m": (HERE,)}
    return [
        Case("it fires seven minutes after the last chores", beat(UNTIL_TEN), fires),
        Case(
            "it fires where none ever ran",
            store(values((1, 30))),
            {"4m": (), "5m": (HERE,), "20m": (HERE,)},
        ),
        Case("chores in time are silent", beat(ALWAYS), {f"{k}m": () for k in (5, 20, 50)}),
        Case("so are some that are 100 seconds late", beat("0 0 20+60x50"), {"10m": (), "40m": ()}),
        Case("130 seconds are too late", beat("0 0 0 50+60x50"), {"6m": (), "7m": (HERE,)}),
        Case(
            "a restart is silent, and it resolves",
            beat("0+60x10 600+0x4 960+60x10 1560+0x8 2160+60x20"),
            {f"{k}m": () for k in (14, 16, 25, 32, 36)} | {"33m": (HERE,), "35m": (HERE,)},
        ),
        Case(
            "without Redis the store's own alert speaks",
            store(values((1, 10), (0, 50))),
            {"9m": (HERE,), "10m": (), "40m": ()},
        ),
        Case(
            "scrapes that fail change nothing",
            store(values((1, 10), missing(4), (1, 50)))
            | {named("monitor_beat_timestamp_seconds", MONITOR): "0+60x9 _x4 840+60x40"},
            {"13m": (), "20m": ()},
        ),
        Case(
            "they resolve nothing, and what is gone resolves",
            store(values((1, 10), missing(4), (1, 10), GONE)),
            {"9m": (HERE,), "13m": (HERE,), "28m": (HERE,), "29m": ()},
        ),
        Case(
            "the beat of another cluster does none of ours",
            beat(UNTIL_TEN) | beat(ALWAYS, THERE),
            {"20m": (HERE,)},
        ),
    ]


def waiting(text: str, labels: Labels = MONITOR, state: str = "queued") -> dict[str, str]:
    return {named("monitor_snapshots", labels, queue="cpu", state=state): text}


def workers(text: str, queues: str = "cpu,scores", labels: Labels = MONITOR) -> dict[str, str]:
    return {named("monitor_workers", labels, queue=queues, state="idle"): text}


def worker_cases() -> list[Case]:
    queued = waiting(values((3, 60)))
    lost = workers(values((1, 11), GONE))
    return [
        Case(
            "it fires ten minutes after the last worker was gone",
            queued | lost,
            {"25m": (), "26m": (QUEUE,)},
        ),
        Case(
            "it resolves when a worker comes",
            queued | workers(values(missing(30), (1, 20))),
            {"29m": (QUEUE,), "30m": ()},
        ),
        *(
            Case(
                f"a worker of {queues} takes them", queued | workers("1+0x60", queues), {"40m": ()}
            )
            for queues in ("cpu", "cpu,scores", "scores,cpu", "gpu,cpu")
        ),
        Case(
            "a worker of others does not",
            queued | workers("1+0x60", "gpu,scores"),
            {"40m": (QUEUE,)},
        ),
        Case("without snapshots none is missed", lost, {"30m": (), "60m": ()}),
        Case(
            "a snapshot whose worker died waits too",
            waiting(values((1, 60)), state="running"),
            {"30m": (QUEUE,)},
        ),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            waiting(values((3, 10), missing(4), (3, 10), GONE)),
            {"9m": (), "10m": (QUEUE,), "28m": (QUEUE,), "29m": ()},
        ),
        Case(
            "a worker of another cluster takes none of ours",
            queued | workers("1+0x60", labels=THERE) | waiting(values((1, 60)), THERE),
            {"30m": (QUEUE,)},
        ),
    ]


def ended(text: str, labels: Labels = MONITOR) -> dict[str, str]:
    return {named("snapshots_total", labels, run="r", state="done"): text}


def progress(text: str, labels: Labels = MONITOR) -> dict[str, str]:
    return {named("monitor_snapshot_progress_ratio", labels, run="r"): text}


def stuck_cases() -> list[Case]:
    stuck = waiting(values((2, 300))) | workers("1+0x300")
    nothing = {"89m": (), "90m": (QUEUE,)}
    half = "0.5+0x300"
    return [
        Case(
            "it fires when nothing came further for an hour and a half",
            stuck | progress(half),
            nothing,
        ),
        Case("or nothing ended", stuck | ended("4+0x300"), nothing),
        Case("or neither", stuck | ended("4+0x300") | progress(half), nothing),
        Case("or nothing ever did", stuck, {"29m": (), "30m": (QUEUE,)}),
        Case(
            "what comes further is silent",
            stuck | ended("4+0x300") | progress(values(*((k / 8, 50) for k in range(6)))),
            {"120m": (), "240m": ()},
        ),
        Case(
            "snapshots that end are silent",
            stuck | progress(half) | ended(values(*((k, 55) for k in range(5)))),
            {"120m": (), "240m": ()},
        ),
        Case(
            "the first one that ends is news",
            stuck | progress(half) | ended(values(missing(80), (1, 200))),
            {"100m": (), "140m": (), "169m": (), "170m": (QUEUE,)},
        ),
        Case(
            "without workers another alert speaks",
            waiting(values((2, 200))) | progress(half),
            {"120m": ()},
        ),
        Case("an empty queue is silent", workers("1+0x200") | progress(half), {"120m": ()}),
        Case(
            "scrapes that fail change nothing, and an empty queue resolves",
            waiting(values((2, 70), missing(4), (2, 30), GONE))
            | workers("1+0x69 stale _x3 1+0x60")
            | progress("0.5+0x69 stale _x3 0.5+0x60"),
            {"89m": (), "90m": (QUEUE,), "108m": (QUEUE,), "109m": ()},
        ),
        Case(
            "what moves in another cluster moves nothing here",
            stuck | progress(half) | ended("0+1x300", THERE) | progress("0+0.001x300", THERE),
            {"95m": (QUEUE,)},
        ),
    ]


def failures(text: str, labels: Labels = MONITOR) -> dict[str, str]:
    return {named("monitor_failed_snapshots", labels): text}


def failing_cases() -> list[Case]:
    return [
        Case(
            "it fires with the third failure",
            failures(values((0, 10), (2, 10), (3, 20))),
            {"19m": (), "20m": (HERE,)},
        ),
        Case(
            "old failures and two new ones are silent",
            failures(values((7, 10), (9, 30))),
            {"9m": (), "30m": ()},
        ),
        Case(
            "it fires for a day",
            failures(values((0, 2), (3, 400))),
            {"1445m": (HERE,), "1450m": ()},
            every="5m",
        ),
        Case(
            "it resolves when they are queued again",
            failures(values((0, 10), (3, 10), (0, 10))),
            {"19m": (HERE,), "20m": ()},
        ),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            failures(values((0, 10), (3, 5), missing(3), (3, 3), GONE)),
            {"16m": (HERE,), "25m": (HERE,), "26m": ()},
        ),
        Case(
            "another cluster's failures are others",
            failures(values((0, 10), (2, 20))) | failures(values((0, 10), (3, 20)), THERE),
            {"20m": (OF_THERE,)},
        ),
    ]


CASES = {
    "ForceGaugeMonitorDown": monitor_cases(),
    "ForceGaugeStoreDown": store_cases(),
    "ForceGaugeBeatMissing": beat_cases(),
    "ForceGaugeWorkerMissing": worker_cases(),
    "ForceGaugeQueueStuck": stuck_cases(),
    "ForceGaugeSnapshotsFailing": failing_cases(),
}
