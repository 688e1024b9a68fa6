"""Operations: forcegauge's own health, of agents, monitor and workers."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.frame import Section, dashboard, to_run
from dashboards.looks import AGO, SECONDS, SHARE, fixed, width
from dashboards.panels import Column, Frame, Panel, Scale, about, lines, number, rows
from dashboards.promql import GROUP, PLACE, last, lost, most, series, trains

UID = "forcegauge-operations"

BUDGET = 0.01
"""An agent's default share of training time."""

LOST = (
    "Runs that trained when Prometheus last heard of them, and of which it hears nothing now: the "
    "process was killed, or cannot be reached."
)
BEAT = (
    "When the monitor's chores were last done, which are due every ten seconds: without them "
    "folders are not watched and what a dead worker held waits."
)
FAILED = "They are not tried again by themselves: `forcegauge monitor requeue`."


def operations() -> sdk.Dashboard:
    """The dashboard of forcegauge itself."""
    sections: list[Section] = [
        ("Does forcegauge itself work?", _health()),
        ("Agents", [_agents(), _overhead(), _durations(), _failures()]),
        ("Snapshots: queue and workers", [_queue(), _workers(), _ended()]),
        ("Monitor", [_runs(), _requests(), _store()]),
    ]
    text = "forcegauge's own health: agents, overhead, failures, queue, workers and snapshots."
    return dashboard(UID, text, sections)


def _health() -> list[Panel]:
    return [*_agents_at_a_glance(), *_monitor_at_a_glance()]


def _agents_at_a_glance() -> list[Panel]:
    trained = "Runs that Prometheus hears of now and that have not ended."
    failed = "In the chosen time, over all runs; the trainings went on."
    cost = "The run whose probes cost most of its training time."
    failures = f"sum(increase({series('probe_failures_total', PLACE)}[$__range]))"
    overhead = last(series("probe_overhead_ratio", PLACE), PLACE)
    bad = Scale("none", 0, ((0.5, "red"),), base="green")
    share = Scale(SHARE, 2, ((BUDGET, "orange"),), base="green")
    return [
        _count(_small("Runs that train", trained, "run_active"), trains(PLACE)),
        number(
            _small("Agents lost", LOST, "run_active"),
            bad,
            {"lost": f"count({lost(PLACE)}) or vector(0)"},
        ),
        number(
            _small("Errors in agents", failed, "probe_failures_total"), bad, {"errors": failures}
        ),
        number(
            _small("Highest overhead", cost, "probe_overhead_ratio"),
            share,
            {"overhead": f"max({overhead})"},
        ),
    ]


def _monitor_at_a_glance() -> list[Panel]:
    answers = "Whether Redis, where the monitor keeps what it knows, answers."
    alive = "Workers heard of within a minute; without one no snapshot is made."
    waits = "Snapshots that no worker has taken yet, in all queues."
    unheard = "monitor not heard of"
    beat = series("monitor_beat_timestamp_seconds", PLACE)
    return [
        number(
            _small("Store", answers, "monitor_store_up", 4),
            Scale("bool_on_off", 0, ((1.0, "green"),), empty=unheard, base="red"),
            {"store": f"min({series('monitor_store_up', PLACE)})"},
            filled=True,
        ),
        _count(
            _small("Workers alive", alive, "monitor_workers", 5),
            f"sum({series('monitor_workers', PLACE)})",
        ),
        number(
            _small("Beat, last at work", BEAT, "monitor_beat_timestamp_seconds", 5),
            Scale(AGO, None, empty=unheard),
            {"beat": f"max({beat}) * 1000"},
        ),
        _count(
            _small("Snapshots waiting", waits, "monitor_snapshots", 5),
            f"sum({series('monitor_snapshots', PLACE, state='queued')})",
        ),
        number(
            _small("Failed snapshots", FAILED, "monitor_failed_snapshots", 5),
            Scale("none", 0, ((0.5, "red"),), empty=unheard, base="green"),
            {"failed": f"max({series('monitor_failed_snapshots', PLACE)})"},
        ),
    ]


def _small(title: str, text: str, name: str, wide: int = 6) -> Frame:
    return Frame(title, about(text, name), wide, 4)


def _count(frame: Frame, expr: str) -> Panel:
    return number(frame, Scale("none", 0), {frame.title: f"sum({expr}) or vector(0)"})


def _agents() -> Panel:
    names = ("probe_timestamp_seconds", "probe_duration_seconds", "probe_overhead_ratio")
    frame = Frame(
        "Agents (click a run to see what happens in it)",
        about(
            "A row for each run seen in this time. A run that trains and whose last probe is long "
            "ago: its agent is stuck, or its probes fail.",
            *names,
            "probe_failures_total",
            "run_active",
        ),
        24,
        9,
    )
    when, duration, share = (last(series(name, PLACE), PLACE) for name in names)
    failed = f"sum by ({GROUP}) (increase({series('probe_failures_total', PLACE)}[$__range]))"
    columns = [
        Column("trains", trains(PLACE), Scale("bool_yes_no", 0), 100),
        Column("last probe", f"{when} * 1000", Scale(AGO, None), 160),
        Column("probe took", duration, Scale(SECONDS, 2), 130),
        Column("overhead", share, Scale(SHARE, 2, ((BUDGET, "orange"),)), 130),
        Column("errors", failed, Scale("none", 0, ((0.5, "red"),)), 100),
    ]
    return rows(
        frame,
        columns,
        labels={"run": "run", "cluster": "cluster", "namespace": "namespace"},
        order=("run", *(column.title for column in columns), "cluster", "namespace"),
        overrides={"run": [to_run(), width(220)]},
        sort=("errors", "overhead"),
    )


def _overhead() -> Panel:
    frame = Frame(
        "Overhead of probes: the ten highest",
        about(
            "Share of training time. The dashed line is the default budget.", "probe_overhead_ratio"
        ),
        8,
        9,
    )
    asks = {"{{run}}": most("probe_overhead_ratio", PLACE)}
    scale = Scale(SHARE, 2, ((BUDGET, "orange"),))
    return lines(frame, scale, asks, limited=True, bounds=(0, None))


def _durations() -> Panel:
    frame = Frame(
        "Time that a probe takes: the ten longest",
        about("The training stands still for so long at each probe.", "probe_duration_seconds"),
        8,
        9,
    )
    asks = {"{{run}}": most("probe_duration_seconds", PLACE)}
    return lines(frame, Scale(SECONDS, 2), asks, bounds=(0, None))


def _failures() -> Panel:
    frame = Frame(
        "Errors in agents, by the part that failed",
        about("Per minute over all runs; 0 is healthy.", "probe_failures_total"),
        8,
        9,
    )
    failed = series("probe_failures_total", PLACE)
    asks = {"{{reason}}": f"sum by (reason) (rate({failed}[$__rate_interval])) * 60"}
    return lines(frame, Scale("suffix:/min", 2), asks, bounds=(0, None))


def _queue() -> Panel:
    frame = Frame(
        "Snapshots in the queues",
        about(
            "Waiting ones that only grow: too few workers, or none for that queue.",
            "monitor_snapshots",
        ),
        8,
        9,
    )
    asks = {"{{state}}": f"sum by (state) ({series('monitor_snapshots', PLACE)})"}
    return lines(frame, Scale("none", 0, empty="nothing waits"), asks, bounds=(0, None))


def _workers() -> Panel:
    frame = Frame(
        "Workers",
        about("Idle ones while snapshots wait: they take from another queue.", "monitor_workers"),
        8,
        9,
    )
    asks = {"{{state}}": f"sum by (state) ({series('monitor_workers', PLACE)})"}
    return lines(frame, Scale("none", 0, empty="no worker alive"), asks, bounds=(0, None))


def _ended() -> Panel:
    frame = Frame(
        "Snapshots that ended, by how",
        about("Counted over the runs that are still known.", "snapshots_total"),
        8,
        9,
    )
    asks = {"{{state}}": f"sum by (state) ({series('snapshots_total', PLACE)})"}
    looks = {"done": [fixed("green")], "failed": [fixed("red")]}
    return lines(frame, Scale("none", 0), asks, overrides=looks, bounds=(0, None))


def _runs() -> Panel:
    frame = Frame(
        "Runs that the monitor knows",
        about("Stale: no heartbeat for a minute, and no end told.", "monitor_runs"),
        8,
        9,
    )
    asks = {"{{state}}": f"sum by (state) ({series('monitor_runs', PLACE)})"}
    return lines(frame, Scale("none", 0), asks, bounds=(0, None))


def _requests() -> Panel:
    frame = Frame(
        "Requests to the monitor, by status",
        about("5xx: the monitor fails; 4xx: callers do.", "monitor_requests_total"),
        8,
        9,
    )
    rate = f"rate({series('monitor_requests_total', PLACE)}[$__rate_interval])"
    asks = {"{{code}}": f"sum by (code) ({rate})"}
    return lines(frame, Scale("reqps", 2), asks, overrides={"5xx": [fixed("red")]})


def _store() -> Panel:
    frame = Frame(
        "Store, and how much of running snapshots is done",
        about(
            "Store at 100 %: Redis answers. A snapshot's line that stands still: its worker is "
            "gone or stuck.",
            "monitor_store_up",
            "monitor_snapshot_progress_ratio",
        ),
        8,
        9,
    )
    progress = series("monitor_snapshot_progress_ratio", PLACE)
    asks = {
        "store": f"min({series('monitor_store_up', PLACE)})",
        "{{run}}": f"max by (run) ({progress})",
    }
    return lines(frame, Scale(SHARE, 1), asks, bounds=(0, 1))
