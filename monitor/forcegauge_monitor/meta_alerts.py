"""Alerts about forcegauge itself: probes, agents, the monitor, its workers and its store."""

from __future__ import annotations

from forcegauge_monitor.alert import OF_A_RUN, Alert, Figure, by, held

OPERATIONS = "forcegauge-operations"
OF_A_MONITOR = ("cluster", "namespace")
OF_A_QUEUE = (*OF_A_MONITOR, "queue")

BUDGET = 0.01
"""The share of training time that an agent gives to probes unless told otherwise."""

EXEMPT_PROBES = 12
"""More than a phase's dense early probes, which the budget does not count (spacing to 2048)."""

STALE_FACTOR = 4
"""Between the early probes and the regular ones a spacing is up to 3 times the longest before."""


def _run(vector: str) -> str:
    return by(OF_A_RUN, vector)


_ACTIVE = f"and\n{_run(held('forcegauge_run_active'))} == 1"

_SPACING = (
    "max_over_time(\n  (forcegauge_probe_step - forcegauge_probe_step offset 10m > 0)[3d:10m]\n)"
)

_PROBE_STALE = Alert(
    "ForceGaugeProbeStale",
    "warning",
    "A run trains on and is not probed any more.",
    f"The steps since the last probe are over {STALE_FACTOR} times the longest spacing that the "
    "run had within three days (at least what it trains in ten minutes), and the seconds over "
    f"{STALE_FACTOR} times what the budget of {BUDGET:.0%} makes of the last probe's time, while "
    "the run is active. Counted in steps, so that a pause or a resumed run is no gap.",
    f"{_run(held('forcegauge_train_step'))}\n- {_run(held('forcegauge_probe_step'))}\n"
    f"> {STALE_FACTOR} * {_run(_SPACING)}\n"
    f"and\ntime() - {_run(held('forcegauge_probe_timestamp_seconds'))}\n"
    f"> {STALE_FACTOR / BUDGET:g} * {_run(held('forcegauge_probe_duration_seconds'))}\n"
    f"{_ACTIVE}",
    "{run} is at step {step}, {now} steps after its last probe, that of step {probed}. What the "
    "metrics, alarms and the verdict say is of that step. The training's log says why, where a "
    "probe failed.",
    {"step": Figure("forcegauge_train_step"), "probed": Figure("forcegauge_probe_step")},
    dashboard=OPERATIONS,
)

_OVERHEAD_HIGH = Alert(
    "ForceGaugeOverheadHigh",
    "warning",
    "Probes take more of the training time than they should.",
    f"Probes of the last six hours took over {2 * BUDGET:.0%} of that time (twice the budget of "
    f"{BUDGET:.0%}), not counting {EXEMPT_PROBES} of them: the dense ones at a phase's start are "
    "exempt. `forcegauge_probe_overhead_ratio` counts those too until the last of them.",
    _run(
        f"(changes(forcegauge_probe_timestamp_seconds[6h]) - {EXEMPT_PROBES})\n"
        "* avg_over_time(forcegauge_probe_duration_seconds[6h])\n"
        "/ 21600"
    )
    + f" > {2 * BUDGET:g}\n{_ACTIVE}",
    f"Probes of {{run}} took {{now}} of the last six hours, not counting {EXEMPT_PROBES} of them. "
    "The last one took {duration}; the agent's share since the dense early probes is {overhead}. "
    "Raise `every`, take fewer probes or shorter answers, or leave `budget` at its default.",
    {
        "duration": Figure("forcegauge_probe_duration_seconds", form="seconds"),
        "overhead": Figure("forcegauge_probe_overhead_ratio", form="share"),
    },
    form="share",
    dashboard=OPERATIONS,
)

_PROBE_FAILING = Alert(
    "ForceGaugeProbeFailing",
    "warning",
    "The agent of a run fails again and again; the training goes on.",
    "At least three failures of the agent within two hours, whatever failed, while the run is "
    "active.",
    by(OF_A_RUN, "increase(forcegauge_probe_failures_total[2h])", "sum") + f" >= 3\n{_ACTIVE}",
    "The agent of {run} failed {now} times within two hours; the last good probe is of step "
    "{probed}, the training at {step}. The training's log has each kind of failure once, the "
    "run's record all of them.",
    {"step": Figure("forcegauge_train_step"), "probed": Figure("forcegauge_probe_step")},
    dashboard=OPERATIONS,
)

_KNOWN = held('forcegauge_monitor_runs{state="active"}')

_AGENT_DOWN = Alert(
    "ForceGaugeAgentDown",
    "warning",
    "Prometheus cannot scrape the agent of an active run.",
    "For five minutes the agent's target is discovered and not reached (`up` is 0) while its run "
    "was active when last seen, within six hours. Or the monitor knows active runs and Prometheus "
    "has not one agent's series.",
    _run(
        "last_over_time(forcegauge_run_active[6h]) == 1\n"
        "and on (cluster, namespace, job, instance) up == 0"
    )
    + "\nor\n"
    + f"max({_KNOWN}) > 0\nunless on () {held('forcegauge_run_active')}",
    "The agent of {run} is discovered and does not answer; it was last seen at step {step}. Its "
    "alarms cannot fire meanwhile.",
    {"step": Figure("forcegauge_train_step", over="6h")},
    known="run",
    unknown="The monitor knows {now} active runs, and Prometheus scrapes none of their agents: see "
    "the targets of /sd/targets and whether Prometheus reaches them.",
    dashboard=OPERATIONS,
    wait="5m",
)

_STORE = "forcegauge_monitor_store_up"

_MONITOR_DOWN = Alert(
    "ForceGaugeMonitorDown",
    "warning",
    "The monitor does not answer.",
    "For ten minutes Prometheus has scraped no process of a monitor that it scraped within the "
    "last day.",
    f"count by (cluster, namespace) (last_over_time({_STORE}[1d]))\n"
    f"unless\ncount by (cluster, namespace) ({held(_STORE)})",
    "No process of the monitor answers; {now} did within the last day. Agents go on and are "
    "scraped where they were; new runs are not discovered, no snapshot is made.",
    {},
    labels=OF_A_MONITOR,
    dashboard=OPERATIONS,
    wait="5m",
)

_STORE_DOWN = Alert(
    "ForceGaugeStoreDown",
    "warning",
    "The monitor cannot reach Redis.",
    "For five minutes `forcegauge_monitor_store_up` is 0 at some process of the monitor.",
    f"count by (cluster, namespace) ({held(_STORE)} == 0)",
    "Processes of the monitor that cannot reach Redis: {now}. No run registers, heartbeats are "
    "refused, no snapshot is queued. Agents keep what they have to tell and tell it later.",
    {},
    labels=OF_A_MONITOR,
    dashboard=OPERATIONS,
    wait="5m",
)

_BEAT = "forcegauge_monitor_beat_timestamp_seconds"

_BEAT_MISSING = Alert(
    "ForceGaugeBeatMissing",
    "warning",
    "Nobody does the monitor's chores: no beat runs.",
    "For five minutes no beat has done the monitor's chores within two minutes, or none ever did, "
    "while Redis answers. They are due every ten seconds.",
    f"count by (cluster, namespace) ({held(_STORE)} == 1)\n"
    "unless on (cluster, namespace)\n"
    f"  (time() - {by(OF_A_MONITOR, _BEAT)} < 120)",
    "No beat does the monitor's chores: folders are not watched, Grafana gets no annotations, what "
    "a dead worker held waits, nothing is forgotten. Start one: forcegauge monitor beat",
    {},
    labels=OF_A_MONITOR,
    dashboard=OPERATIONS,
    wait="5m",
)

_WAITING = "forcegauge_monitor_snapshots"
_WORKERS = held("forcegauge_monitor_workers")


def _workers(part: str) -> str:
    """Workers by one queue of the list that their label is; the list stays, to tell them apart."""
    kept = f'label_replace({_WORKERS}, "queues", "$1", "queue", "(.*)")'
    return f'label_replace({kept}, "queue", "$1", "queue", "{part}")'


_FIRST, _LAST = _workers("([^,]*).*"), _workers(".*?([^,]*)")

_WORKER_MISSING = Alert(
    "ForceGaugeWorkerMissing",
    "warning",
    "Snapshots wait and no worker takes them.",
    "For ten minutes there are open snapshots in a queue and no living worker that takes from it.",
    f"{by(OF_A_QUEUE, f'max by (cluster, namespace, queue, state) ({held(_WAITING)})', 'sum')}\n"
    f"unless on (cluster, namespace, queue) {_FIRST}\n"
    f"unless on (cluster, namespace, queue) {_LAST}",
    "{now} snapshots are open in the queue {queue} and no worker takes from it. Start one: "
    "forcegauge monitor worker --queues {queue}",
    {},
    labels=OF_A_QUEUE,
    dashboard=OPERATIONS,
    wait="10m",
)


def _moved(labels: str, metric: str) -> str:
    """Series of a run that are new or another value than an hour ago."""
    now = f"max by ({labels}) ({held(metric)})"
    then = f"max by ({labels}) (last_over_time({metric}[5m] offset 1h))"
    return f"({now} unless {now} == {then})"


_QUEUED = held(f'{_WAITING}{{state="queued"}}')

_QUEUE_STUCK = Alert(
    "ForceGaugeQueueStuck",
    "warning",
    "Snapshots wait, and the workers get none of them done.",
    "For half an hour snapshots are queued and workers take from the queue, but in the hour before "
    "no snapshot ended and none came further.",
    f"{by(OF_A_QUEUE, _QUEUED)}\n"
    f"and on (cluster, namespace, queue) ({_FIRST} or {_LAST})\n"
    "unless on (cluster, namespace)\n"
    f"  {_moved('cluster, namespace, run, state', 'forcegauge_snapshots_total')}\n"
    "unless on (cluster, namespace)\n"
    f"  {_moved('cluster, namespace, run', 'forcegauge_monitor_snapshot_progress_ratio')}",
    "{now} snapshots wait in the queue {queue}. Workers take from it, and for over an hour nothing "
    "ended or came further: see the workers' logs, and cancel what hangs.",
    {},
    labels=OF_A_QUEUE,
    dashboard=OPERATIONS,
    wait="30m",
)

_FAILED = "forcegauge_monitor_failed_snapshots"

_SNAPSHOTS_FAILING = Alert(
    "ForceGaugeSnapshotsFailing",
    "warning",
    "Snapshots fail again and again.",
    "At least three more snapshots are on the list of failed ones than at its shortest within the "
    "last day.",
    by(OF_A_MONITOR, f"{held(_FAILED)} - min_over_time({_FAILED}[1d])") + " >= 3",
    "{now} snapshots failed lately, {failed} are on the list. `forcegauge monitor requeue` lists "
    "them with their reasons, and queues them again.",
    {"failed": Figure(_FAILED)},
    labels=OF_A_MONITOR,
    dashboard=OPERATIONS,
)

META = (
    _PROBE_STALE,
    _OVERHEAD_HIGH,
    _PROBE_FAILING,
    _AGENT_DOWN,
    _MONITOR_DOWN,
    _BEAT_MISSING,
    _WORKER_MISSING,
    _QUEUE_STUCK,
    _SNAPSHOTS_FAILING,
    _STORE_DOWN,
)
