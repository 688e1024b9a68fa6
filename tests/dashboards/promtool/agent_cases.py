"""Cases for the alerts about a run's probes and its agent."""

from __future__ import annotations

from tests.dashboards.promtool.case import (
    AGAIN,
    AGENT,
    GONE,
    MONITOR,
    RUN,
    TWIN,
    Case,
    Labels,
    missing,
    named,
    up,
    values,
)

HOUR = 60
DAY = 24 * HOUR


def probed(
    train: str,
    probe: str,
    *,
    labels: Labels = AGENT,
    active: str = "1+0x999",
    seconds: str = "0.1+0x999",
    at: str = "0+0x999",
) -> dict[str, str]:
    """A run's steps, and what its last probe took and when it was."""
    return {
        named("train_step", labels): train,
        named("probe_step", labels): probe,
        named("run_active", labels): active,
        named("probe_duration_seconds", labels): seconds,
        named("probe_timestamp_seconds", labels): at,
    }


TRAIN = "0+10x11 114+4x400"
PROBES = values((80, 9), (90, 2), (110, 400))
"""Within ten minutes 10 steps between probes, then 20: it is stale when over 80 behind."""


def stale_cases() -> list[Case]:
    return [*_stale(), *_not_stale(), *_while_stale()]


def _stale() -> list[Case]:
    stuck = probed(TRAIN, PROBES)
    expensive = probed(TRAIN, PROBES, seconds="3+0x400", at="1200+0x400")
    each = probed(values(*((k, 10) for k in range(12))), values((0, 10), (1, 10), (2, 10), (3, 90)))
    days = probed("0+100x500", values((100, 1), (200, 500)), active="1+0x500")
    return [
        Case(
            "it fires after four times the longest spacing, and not before",
            stuck,
            {"19m": (), "31m": (), "32m": (RUN,), "45m": (RUN,)},
        ),
        Case(
            "expensive probes are rarer: four times what the budget makes of three seconds",
            expensive,
            {"40m": (), "41m": (RUN,)},
        ),
        Case("a step in ten minutes is a spacing too", each, {"79m": (), "80m": (RUN,)}),
        Case(
            "a jump between probes counts wherever in ten minutes it is",
            probed(TRAIN, values((10, 27), (20, 90))),
            {"28m": (), "40m": (RUN,)},
        ),
        Case("it fires for three days", days, {"72h": (RUN,), "73h": ()}, every="10m"),
    ]


def _not_stale() -> list[Case]:
    dense = [(1 << k, 1 << k) for k in range(5)]
    return [
        Case(
            "a run that Prometheus has known for less than a spacing is silent",
            probed("0+10x200", "500+0x200"),
            {"20m": (), "40m": ()},
        ),
        Case(
            "early probes, each twice as far as the one before, are silent",
            probed("0+1x130", values(*dense, (32, 32), (64, 66))),
            {f"{k}m": () for k in (15, 31, 63, 127)},
        ),
        Case(
            "a probe every 48 steps after dense ones is silent",
            probed("0+1x150", values((0, 1), *dense, (32, 16), (48, 48), (96, 54))),
            {f"{k}m": () for k in (31, 47, 95)},
        ),
        Case(
            "the end of the run is no gap",
            probed(TRAIN, PROBES, active=values((1, 32), (0, 60))),
            {"32m": (), "60m": ()},
        ),
        Case(
            "a pause and a restart are no gap: steps stand still",
            probed(
                f"{values((500, 5), missing(30))} 505+1x30",
                values((500, 5), missing(30), (500, 31)),
                active=values((1, 5), missing(30), (1, 31)),
            ),
            {"3m": (), "36m": (), "50m": ()},
        ),
    ]


def _while_stale() -> list[Case]:
    stuck = probed(TRAIN, PROBES)
    returned = values((80, 9), (90, 2), (110, 29), (220, 3))
    return [
        Case("a probe resolves it", probed(TRAIN, returned), {"39m": (RUN,), "40m": ()}),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            {name: f"{_first(text, 41)} stale" for name, text in stuck.items()},
            {"40m": (RUN,), "45m": (RUN,), "46m": ()},
        ),
        Case(
            "of two runs of one name the stale one fires",
            stuck | probed(TRAIN, TRAIN, labels=TWIN),
            {"40m": (RUN,)},
        ),
    ]


def _first(text: str, count: int) -> str:
    """The first values of a series, one by one."""
    found: list[str] = []
    for part in text.split():
        head, _, times = part.partition("x")
        start, _, step = head.partition("+")
        found += [f"{float(start) + float(step or 0) * k:g}" for k in range(int(times or 0) + 1)]
    return " ".join(found[:count])


def probes(*parts: tuple[int, int]) -> str:
    """When the last probe was: so many new ones, each so many minutes after the other."""
    stamps, stamp = [], 0
    for count, spacing in parts:
        for _ in range(count):
            stamp += 1
            stamps += [str(stamp)] * spacing
    return " ".join(stamps)


def spent(seconds: float, *parts: tuple[int, int], labels: Labels = AGENT) -> dict[str, str]:
    """Probes that take so many seconds each."""
    stamps = probes(*parts)
    steady = values((seconds, len(stamps.split())))
    ones = values((1, len(stamps.split())))
    return {
        named("probe_timestamp_seconds", labels): stamps,
        named("probe_duration_seconds", labels): steady,
        named("run_active", labels): ones,
    }


def overhead_cases() -> list[Case]:
    ended = spent(60, (400, 1))
    ended[named("run_active", AGENT)] = values((1, 70), (0, 330))
    exited = {name: f"{text} stale" for name, text in spent(60, (101, 1)).items()}
    process = spent(10, (40, 1))
    return [
        Case(
            "it fires with the 44th probe of ten seconds after twelve, for six hours",
            spent(10, (57, 1), (1, 400)),
            {"55m": (), "56m": (RUN,), "350m": (RUN,), "375m": ()},
        ),
        Case(
            "twice the budget is not too much",
            spent(432, (13, 10), (1, 300)),
            {"130m": (), "140m": (), "200m": ()},
        ),
        Case(
            "dense early probes are exempt, however much they take",
            spent(60, (13, 1), (6, 100)),
            {f"{k}m": () for k in (5, 13, 60, 300, 600)},
        ),
        Case("a run that ended is silent", ended, {"69m": (RUN,), "71m": (), "300m": ()}),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            exited,
            {"100m": (RUN,), "105m": (RUN,), "106m": ()},
        ),
        Case(
            "of two runs of one name the one that probes too much fires",
            spent(60, (100, 1)) | spent(60, (1, 100), labels=TWIN),
            {"90m": (RUN,)},
        ),
        Case(
            "another process of the run begins anew",
            {name: f"{text} stale" for name, text in process.items()}
            | {
                name: f"{missing(45)} {text}"
                for name, text in spent(10, (40, 1), labels=AGAIN).items()
            },
            {"39m": (), "60m": (), "85m": ()},
        ),
    ]


def failed(
    counts: dict[str, str], *, active: str = "1+0x400", labels: Labels = AGENT
) -> dict[str, str]:
    """Failures by reason."""
    found = {named("probe_failures_total", labels, reason=why): n for why, n in counts.items()}
    return {**found, named("run_active", labels): active}


def failing_cases() -> list[Case]:
    thrice = {"scoring": values((0, 10), (1, 20), (2, 20), (3, 300))}
    once_each = {
        "scoring": values((0, 10), (1, 300)),
        "record": values((0, 20), (1, 290)),
        "greedy": values((0, 30), (1, 280)),
    }
    twice = {"scoring": values((0, 60), (1, 10), (2, 200))}
    reset = {"scoring": values((0, 10), (1, 5), (2, 5), (0, 200))}
    four = values((0, 10), (1, 5), (2, 5), (3, 5), (4, 36))
    return [
        Case(
            "it fires with the third failure within two hours",
            failed(thrice),
            {"49m": (), "50m": (RUN,), "120m": (RUN,), "127m": (RUN,), "135m": ()},
        ),
        Case("whatever failed counts", failed(once_each), {"29m": (), "31m": (RUN,)}),
        Case("two failures are silent", failed(twice), {"75m": (), "119m": (), "150m": ()}),
        Case(
            "three, counted over just two hours, are three",
            failed({"scoring": values((0, 40), (1, 20), (2, 20), (3, 60))}),
            {"120m": (RUN,)},
        ),
        Case("a restart counts nothing anew", failed(reset), {"19m": (), "25m": (), "100m": ()}),
        Case(
            "the end of the run ends it",
            failed(thrice, active=values((1, 70), (0, 300))),
            {"69m": (RUN,), "71m": ()},
        ),
        Case(
            "scrapes that fail change nothing, and what is gone resolves",
            failed({"scoring": f"{four} stale"}, active=values((1, 61), GONE)),
            {"60m": (RUN,), "65m": (RUN,), "66m": ()},
        ),
        Case(
            "of two runs of one name the one that fails fires",
            failed(thrice) | failed({"scoring": values((0, 300))}, labels=TWIN),
            {"60m": (RUN,)},
        ),
    ]


def agent(active: str, reached: str, labels: Labels = AGENT) -> dict[str, str]:
    return {named("run_active", labels): active, up(labels): reached}


def _known(count: str) -> dict[str, str]:
    return {named("monitor_runs", MONITOR, state="active"): count}


def agent_cases() -> list[Case]:
    down, lost = values((1, 11), (0, 500)), values((1, 11), GONE)
    return [
        Case(
            "it fires when the target is not reached for five minutes, for six hours",
            agent(lost, down),
            {"15m": (), "16m": (RUN,), "370m": (RUN,), "371m": ()},
        ),
        Case(
            "it resolves when the agent answers",
            agent(values((1, 11), missing(20), (1, 9)), values((1, 11), (0, 20), (1, 9))),
            {"30m": (RUN,), "31m": ()},
        ),
        Case(
            "some scrapes that fail are silent",
            agent(values((1, 11), missing(4), (1, 30)), values((1, 11), (0, 4), (1, 30))),
            {f"{k}m": () for k in (12, 14, 16, 30)},
        ),
        Case(
            "the end of the run is silent, also where its target stays",
            agent(values((1, 9), (0, 2), GONE), down),
            {"12m": (), "20m": (), "60m": ()},
        ),
        Case(
            "a run whose target is discovered no more is silent",
            agent(lost, lost),
            {"20m": (), "60m": ()},
        ),
        Case(
            "at the same address in another cluster another run answers",
            agent(lost, down) | agent(values((1, 60)), values((1, 60)), TWIN),
            {"30m": (RUN,)},
        ),
        Case(
            "it fires where the monitor knows a run and Prometheus no agent",
            _known(values((0, 10), (1, 50))),
            {"9m": (), "14m": (), "15m": ({},), "50m": ({},)},
        ),
        Case(
            "it does not where an agent is scraped",
            _known(values((3, 30))) | agent(values((1, 30)), values((1, 30))),
            {"20m": (), "29m": ()},
        ),
        Case(
            "nor where all runs have ended",
            _known(values((0, 30))),
            {"10m": (), "29m": ()},
        ),
        Case(
            "scrapes that fail change nothing",
            _known(values((1, 60))) | agent(lost, lost),
            {"20m": (), "21m": ({},)},
        ),
    ]


CASES = {
    "ForceGaugeProbeStale": stale_cases(),
    "ForceGaugeOverheadHigh": overhead_cases(),
    "ForceGaugeProbeFailing": failing_cases(),
    "ForceGaugeAgentDown": agent_cases(),
}
