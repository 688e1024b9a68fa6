"""PromQL of the dashboards: metrics by their catalogue names, and what several panels ask."""

from __future__ import annotations

from forcegauge.alarms import VERDICTS
from forcegauge.catalogue import Metric
from forcegauge.catalogue import metric as agent_metric
from forcegauge_monitor.catalogue import metric as monitor_metric

PLACE = 'cluster=~"$cluster", namespace=~"$namespace"'
"""All of a place; ``.*`` matches the absent label too."""
ONE_RUN = f'{PLACE}, run="$run"'
RUNS = f'{PLACE}, run=~"$run"'
OF_RUN = 'run="$run"'
"""Of the monitor: its series carry the monitor's own cluster and namespace, not the run's."""

GROUP = "cluster, namespace, run"
SICK = ("squeezing", "diverging", "collapsed")
WINDOW = "[$__range:$__interval]"
"""The dashboard's time range, looked at as often as a graph would."""


def known(name: str) -> Metric:
    """The metric of this name, of agent or monitor, without its prefix; raises `KeyError`."""
    try:
        return agent_metric(name)
    except KeyError:
        return monitor_metric(name)


def series(name: str, scope: str, **labels: str) -> str:
    """A selector: ``squeeze_nats`` of a scope, with exact labels besides."""
    exact = [f'{label}="{value}"' for label, value in labels.items()]
    inside = ", ".join(filter(None, (scope, *exact)))
    return f"{known(name).name}{{{inside}}}" if inside else known(name).name


def states(scope: str, names: tuple[str, ...]) -> str:
    """The run state's series of several verdicts."""
    return f'{known("run_state").name}{{{scope}, state=~"{"|".join(names)}"}}'


def newest(scope: str) -> str:
    """One series per run, of the process that probed last: a resumed run has several."""
    probed = series("probe_timestamp_seconds", scope)
    active = series("run_active", scope)
    return (
        f"topk by ({GROUP}) (1, last_over_time({probed}[$__range])"
        f" or last_over_time({active}[$__range]))"
    )


def last(selector: str, scope: str, by: str = GROUP) -> str:
    """The last values within the time range, of the run's newest process."""
    return (
        f"max by ({by}) (last_over_time({selector}[$__range])"
        f" and on ({GROUP}, instance) {newest(scope)})"
    )


def coded(selectors: dict[str, str]) -> str:
    """Verdicts as numbers, 0 warming to 4 collapsed, from a selector for each."""
    return " or ".join(
        f"{selectors[verdict]} * {code}" for code, verdict in enumerate(VERDICTS) if code
    ) + (f" or {selectors['warming']} * 0")


def verdict(scope: str, by: str = GROUP) -> str:
    """The last verdict of each run within the time range, as a number."""
    each = {v: f"last_over_time({series('run_state', scope, state=v)}[$__range])" for v in VERDICTS}
    return f"max by ({by}) (({coded(each)}) and on ({GROUP}, instance) {newest(scope)})"


def verdict_now(scope: str) -> str:
    """The verdict of each run at each moment, as a number, for graphs."""
    worst = (VERDICTS[code:] for code in range(1, len(VERDICTS)))
    return " + ".join(f"max by (run) ({states(scope, names)})" for names in worst)


def trains(scope: str) -> str:
    """1 for runs that Prometheus hears of and that train, 0 for the others seen in the range."""
    active = series("run_active", scope)
    return f"(max by ({GROUP}) ({active}) or on ({GROUP}) {last(active, scope)} * 0)"


def lost(scope: str) -> str:
    """Runs that trained when Prometheus last heard of them, and that it does not hear of now."""
    active = series("run_active", scope)
    now = f"max by ({GROUP}) ({active})"
    return f"({last(active, scope)} == 1 unless on ({GROUP}) {now})"


def was_sick(scope: str) -> str:
    """1 for the runs that were sick at some time within the range."""
    sick = f"max_over_time({states(scope, SICK)}[$__range] @ end())"
    return f"(max by (run) ({sick}) == 1)"


def most(name: str, scope: str, which: str = "topk", **labels: str) -> str:
    """A signal over time of the ten runs where it ends highest, or lowest (``bottomk``)."""
    selector = series(name, scope, **labels)
    ends = f"{which}(10, max by (run) (last_over_time({selector}[$__range] @ end())))"
    return f"max by (run) ({selector}) and on (run) {ends}"


def told_verdict(scope: str) -> str:
    """The last verdict that the monitor was told, as a number; it outlives the run's process."""
    each = {v: series("monitor_run_state", scope, state=v) for v in VERDICTS}
    return f"max by (run) ({coded(each)})"


def last_healthy_step(scope: str, at_end: str = "") -> str:
    """The last probe's step at which the verdict was warming or learning."""
    # subqueries take plain series and are aggregated afterwards: ten times faster
    well = f"{states(scope, ('warming', 'learning'))} == 1"
    step = f"{series('probe_step', scope)} and on ({GROUP}, instance) ({well})"
    return f"max by ({GROUP}) (max_over_time(({step}){WINDOW}{at_end}))"


def sick_since_step(scope: str) -> str:
    """Where it began, of runs that are sick now: of the verdicts after the last healthy one."""
    since, well = series("verdict_since_step", scope), last_healthy_step(scope, " @ end()")
    sick = f"{series('probe_step', scope)} > on ({GROUP}) group_left () {well}"
    after = f"min_over_time(({since} and on ({GROUP}, instance) ({sick})){WINDOW})"
    first = f"min_over_time({since}[$__range]) unless on ({GROUP}) {last_healthy_step(scope)}"
    return f"min by ({GROUP}) ({after} or ({first})) and on ({GROUP}) ({verdict(scope)} >= 2)"


def verdict_since(scope: str) -> str:
    """When the current verdict began, in Unix time; the range's start where it is older."""
    by = f"{GROUP}, state"
    held = f"timestamp({series('run_state', scope)} == 1){WINDOW}"
    holds = f"({last(series('run_state', scope), scope, by)} == 1)"
    another = f"max by ({GROUP}) (max_over_time({held}) unless on ({by}) {holds})"
    return f"({another} or min by ({GROUP}) (min_over_time({held}) and on ({by}) {holds}))"


def told_since() -> str:
    """When the monitor was first told of a run's last verdict, in Unix time."""
    told = f"max by (run, state) ({series('monitor_run_state', PLACE)})"
    return f"max by (run) (min_over_time(timestamp({told}){WINDOW}) and on (run, state) {told})"
