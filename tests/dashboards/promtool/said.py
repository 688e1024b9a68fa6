"""What each alert tells, word for word but for meaning and advice, with numbers from queries."""

from __future__ import annotations

from forcegauge.alarms import ALARMS
from forcegauge_monitor.alerts import alert_name
from tests.dashboards.promtool import agent_cases, alarm_cases, monitor_cases
from tests.dashboards.promtool.case import AGENT, MONITOR, RUN, Case, Labels, named, up

Said = tuple[Case, Labels, str]
"""Series and when, the labels of the alert that fires, its description."""

NUMBERS = {
    "squeezing": "squeeze beyond sharpening: 0.93 nats, above 0.50 nats",
    "diverging": "chosen and untrained answers both fell by: 0.93 nats, above 0.50 nats, or scores "
    "or losses are not finite",
    "argmax_mass_spike": "argmax mass gained in untrained contexts: 93%, above 50%",
    "hallucination_pressure": "pull on answers to other prompts: 0.93 nats, above 0.50 nats",
    "displacement": "chosen answers fell, while the margin grows, by: 0.93 nats, above 0.50 nats",
    "valley_force": "push on tokens that are unlikely already: 93%, above 50%",
    "entropy_collapse": "entropy left: 93%, below 50%",
    "entropy_surge": "entropy moved: 0.93 nats, above 0.50 nats",
    "repeater": "repeated n-grams in greedy outputs: 93%, above 50%",
    "eos_loss": "end-of-sequence moved: 0.93 nats, below 0.50 nats",
}


def _alarms() -> dict[str, Said]:
    said = {}
    for row in ALARMS:
        figures = {
            "value": 0.93,
            "threshold": 0.5,
            "streak": 7,
            "streak_needed": 3,
            "since_step": 80,
        }
        series = {
            named(f"alarm_{name}", AGENT, alarm=row.name): f"{value}x20"
            for name, value in figures.items()
        }
        text = f"r at step 120: {NUMBERS[row.name]}, for 7 probes running (3 are needed), "
        text += "since step 80. "
        case = _at("10m", series | _active("20") | {named("probe_step", AGENT): "120x20"})
        said[alert_name(row)] = case, RUN, f"{text}{row.meaning} {row.advice}"
    return said


def _active(count: str) -> dict[str, str]:
    return {named("run_active", AGENT): f"1x{count}"}


def _at(time: str, series: dict[str, str]) -> Case:
    return Case("what it tells", series, {time: ()})


def _collapsed() -> Said:
    streaks = {"repeater": 4, "entropy_collapse": 6, "eos_loss": 0}
    series = {named("alarm_streak", AGENT, alarm=name): f"{n}x9" for name, n in streaks.items()}
    series |= {named("run_state", AGENT, state="collapsed"): "1x9"} | _active("9")
    series |= {named("verdict_since_step", AGENT): "90x9", named("probe_step", AGENT): "120x9"}
    text = (
        "r has collapsed since step 90, seen at step 120. Probes running with repeated outputs: 4, "
        "with lost entropy: 6, without an end of answers: 0. Stop the run and go back to the last "
        "healthy checkpoint; its record names it."
    )
    return _at("5m", series), RUN, text


def _heard() -> Said:
    told = named("monitor_run_state", MONITOR, run="r", state="collapsed")
    text = (
        "r has collapsed. The monitor heard of it in a heartbeat; Prometheus has no numbers, for "
        "it did not scrape the agent at the time. They are in the run's record. Stop the run and "
        "go back to the last healthy checkpoint; its record names it."
    )
    return _at("5m", {told: "1x9"}), {"run": "r"}, text


def _of_agents() -> dict[str, Said]:
    stale = agent_cases.probed(agent_cases.TRAIN, agent_cases.PROBES)
    spent = agent_cases.spent(10, (80, 1))
    spent |= {named("probe_overhead_ratio", AGENT): "0.125x80"}
    failed = agent_cases.failed({"scoring": "0 0 1 2 3x40"})
    failed |= {named("train_step", AGENT): "90x40", named("probe_step", AGENT): "50x40"}
    down = {named("run_active", AGENT): "1 1 stale", up(AGENT): "1 1 0x20"}
    return {
        "ForceGaugeProbeStale": (
            _at("40m", stale),
            RUN,
            "r is at step 226, 116 steps after its last probe, that of step 110. What the metrics, "
            "alarms and the verdict say is of that step. The training's log says why, where a "
            "probe failed.",
        ),
        "ForceGaugeOverheadHigh": (
            _at("72m", spent),
            RUN,
            "Probes of r took 2.778% of the last six hours, not counting 12 of them. The last one "
            "took 10s; the agent's share since the dense early probes is 12.5%. Raise `every`, "
            "take fewer probes or shorter answers, or leave `budget` at its default.",
        ),
        "ForceGaugeProbeFailing": (
            _at("20m", failed),
            RUN,
            "The agent of r failed 3 times within two hours; the last good probe is of step 50, "
            "the training at 90. The training's log has each kind of failure once, the run's "
            "record all of them.",
        ),
        "ForceGaugeAgentDown": (
            _at("8m", down | {named("train_step", AGENT): "90 95 stale"}),
            RUN,
            "The agent of r is discovered and does not answer; it was last seen at step 95. "
            "Its alarms cannot fire meanwhile.",
        ),
    }


def _of_monitors() -> dict[str, Said]:
    queued = monitor_cases.waiting("3x90")
    stuck = queued | monitor_cases.workers("1x90")
    here, queue = monitor_cases.HERE, monitor_cases.QUEUE
    return {
        "ForceGaugeMonitorDown": (
            _at("20m", monitor_cases.store("1 1 stale")),
            here,
            "No process of the monitor answers; 1 did within the last day. Agents go on and are "
            "scraped where they were; new runs are not discovered, no snapshot is made.",
        ),
        "ForceGaugeStoreDown": (
            _at("9m", monitor_cases.store("0x9")),
            here,
            "Processes of the monitor that cannot reach Redis: 1. No run registers, heartbeats are "
            "refused, no snapshot is queued. Agents keep what they have to tell and tell it later.",
        ),
        "ForceGaugeBeatMissing": (
            _at("9m", monitor_cases.store("1x9")),
            here,
            "No beat does the monitor's chores: folders are not watched, Grafana gets no "
            "annotations, what a dead worker held waits, nothing is forgotten. Start one: "
            "forcegauge monitor beat",
        ),
        "ForceGaugeWorkerMissing": (
            _at("20m", queued),
            queue,
            "3 snapshots are open in the queue cpu and no worker takes from it. Start one: "
            "forcegauge monitor worker --queues cpu",
        ),
        "ForceGaugeQueueStuck": (
            _at("40m", stuck),
            queue,
            "3 snapshots wait in the queue cpu. Workers take from it, and for over an hour nothing "
            "ended or came further: see the workers' logs, and cancel what hangs.",
        ),
        "ForceGaugeSnapshotsFailing": (
            _at("5m", monitor_cases.failures("2 2 7x9")),
            here,
            "5 snapshots failed lately, 7 are on the list. `forcegauge monitor requeue` lists "
            "them with their reasons, and queues them again.",
        ),
    }


def _nobody() -> Said:
    known = {named("monitor_runs", MONITOR, state="active"): "2x20"}
    text = (
        "The monitor knows 2 active runs, and Prometheus scrapes none of their agents: see the "
        "targets of /sd/targets and whether Prometheus reaches them."
    )
    return _at("10m", known), {}, text


SAID = {**_alarms(), "ForceGaugeCollapsed": _collapsed(), **_of_agents(), **_of_monitors()}
"""By alert."""

OTHERWISE = {"ForceGaugeCollapsed": _heard(), "ForceGaugeAgentDown": _nobody()}
"""Where the numbers are not to be had."""

CASES = alarm_cases.CASES | agent_cases.CASES | monitor_cases.CASES
"""All cases of every alert."""
