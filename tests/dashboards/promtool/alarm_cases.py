"""Cases for the alerts of alarms, which are all alike, and for the collapse."""

from __future__ import annotations

from collections.abc import Iterator

from forcegauge.alarms import ALARMS, Alarm
from forcegauge_monitor.alerts import VERDICTS, alert_name
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
    values,
)

HOUR = 60
DAY = 24 * HOUR
FIVES = 12
"""Of minutes, in an hour."""


def minutes(count: int) -> str:
    return f"{count}m"


def alarm_cases(row: Alarm) -> list[Case]:
    """What every alarm must do: ``keep`` is how long it goes on when it does not hold any more."""
    keep = HOUR if row.name in VERDICTS else 15
    state = _Of(row.name, row.streak)
    made = [
        state.fires(),
        state.one_noisy_probe(),
        state.two_clusters(),
        state.without_target_labels(),
        *_while_it_lasts(state, keep),
    ]
    return [*made, *heard_cases(row.name)] if row.name in VERDICTS else made


class _Of:
    """Series of one alarm: a streak, beside how many are needed."""

    def __init__(self, alarm: str, needed: int) -> None:
        self.alarm, self.needed = alarm, needed

    def series(self, streak: str, labels: Labels = AGENT) -> dict[str, str]:
        return {
            named("alarm_streak", labels, alarm=self.alarm): streak,
            named("alarm_streak_needed", labels, alarm=self.alarm): _like(streak, self.needed),
            named("run_active", labels): _like(streak, 1),
        }

    def on(self, count: int) -> str:
        return values((self.needed, count))

    def fires(self) -> Case:
        climbing = values(*((k, 2) for k in range(self.needed)), (self.needed, 30))
        last = 2 * self.needed
        fires = {minutes(last - 1): (), minutes(last): (RUN,), minutes(last + 20): (RUN,)}
        return Case("it fires at the probe that completes the streak", self.series(climbing), fires)

    def one_noisy_probe(self) -> Case:
        noisy = values((0, 5), (self.needed - 1, 5), (0, 5), (self.needed - 1, 5), (0, 10))
        silent: tuple[Labels, ...] = ()
        at = {minutes(k): silent for k in (0, 7, 12, 17, 29)}
        return Case("a noisy probe, twice, is silent", self.series(noisy), at)

    def two_clusters(self) -> Case:
        series = self.series(self.on(20)) | self.series(values((0, 20)), TWIN)
        return Case("of two runs of one name the sick one fires", series, {"10m": (RUN,)})

    def without_target_labels(self) -> Case:
        labels = {"run": "r", "job": "agents", "instance": "a:9790"}
        series = self.series(self.on(20), labels)
        return Case("a target needs no cluster", series, {"10m": ({"run": "r"},)})


def _like(streak: str, needed: int) -> str:
    """As many values as in another series, missing and gone where that one is."""
    shown = []
    for part in streak.split():
        head, _, count = part.partition("x")
        shown.append(f"{needed}+0x{count}" if "+" in head else part)
    return " ".join(shown)


def _after_the_end(series: dict[str, str], keep: int) -> Case:
    """Of series for four hours."""
    ended = series | {named("run_active", AGENT): values((1, 10), (0, 230))}
    # the last minute in which the run was active is the ninth
    fires = {minutes(9 + HOUR + keep): (RUN,), minutes(10 + HOUR + keep): ()}
    return Case("of a run that ended long ago nothing fires", ended, fires)


def _while_it_lasts(state: _Of, keep: int) -> Iterator[Case]:
    yield _after_the_end(state.series(state.on(4 * HOUR)), keep)
    quiet = values((state.needed, 10), (0, keep + 20))
    fires = {"9m": (RUN,), minutes(9 + keep): (RUN,), minutes(10 + keep): ()}
    yield Case("it resolves, but not at once", state.series(quiet), fires)

    # the last value counts for five minutes more
    ended = state.series(values((state.needed, 11), GONE))
    ended[named("run_active", AGENT)] = values((1, 8), (0, 3), GONE)
    fires = {"12m": (RUN,), minutes(15 + keep): (RUN,), minutes(16 + keep): ()}
    yield Case("a run that ends and exits does not resolve its alert at once", ended, fires)

    gap = values((state.needed, 10), missing(4), (state.needed, keep + 20))
    fires = {minutes(k): (RUN,) for k in (9, 12, 14, 20 + keep)}
    yield Case("a gap changes nothing", state.series(gap), fires)

    old, new = values((state.needed, 11), GONE), values(missing(12), (state.needed, keep + 30))
    fires = {minutes(k): (RUN,) for k in (10, 11, 13, 30, 30 + keep)}
    series = state.series(old) | state.series(new, AGAIN)
    yield Case("after a restart it is the same alert", series, fires)

    new = values(missing(12), (0, keep + 30))
    fires = {"10m": (RUN,), minutes(15 + keep): (RUN,), minutes(16 + keep): ()}
    series = state.series(old) | state.series(new, AGAIN)
    yield Case("a restart from a healthy checkpoint resolves it", series, fires)


def heard_cases(state: str) -> Iterator[Case]:
    """What the monitor's word does beside the agent's."""
    yield from _only_the_monitor(state)
    yield from _both(state)
    yield from _clusters(state)


def _told(state: str, text: str, **labels: str) -> dict[str, str]:
    return {named("monitor_run_state", MONITOR | {"run": "r"}, state=state, **labels): text}


def _seen(state: str, text: str, labels: Labels = AGENT) -> dict[str, str]:
    return {
        named("run_state", labels, state=state): text,
        named("run_active", labels): _like(text, 1),
    }


def _only_the_monitor(state: str) -> Iterator[Case]:
    unseen = {"run": "r"}
    series = _seen(state, values((0, 20), GONE)) | _told(state, values(missing(24), (1, 60)))
    fires = {"810s": (), "840s": (unseen,), "20m": (unseen,)}
    yield Case("what the agent could not tell the monitor tells", series, fires, every="30s")

    series = _told(state, values((1, 28 * FIVES)))
    fires = {minutes(DAY + 55): (unseen,), minutes(DAY + HOUR): (), minutes(27 * HOUR): ()}
    yield Case("what the monitor keeps does not fire for ever", series, fires, every="5m")

    series = _told(state, values((1, 8), missing(10), (1, 27 * FIVES)))
    fires = {minutes(DAY + k): () for k in (HOUR, 85, 90, 3 * HOUR)}
    yield Case("nor again for a gap in what the monitor says", series, fires, every="5m")

    series = _told(state, values((1, 8), missing(14), (1, 27 * FIVES)))
    fires = {minutes(DAY + 95): (), minutes(DAY + 105): (unseen,)}
    yield Case("after more than an hour's silence it is news again", series, fires, every="5m")

    series = _told(state, values((1, 11), GONE))
    fires = {"17m": (unseen,), minutes(17 + HOUR): (unseen,), minutes(18 + HOUR): ()}
    yield Case("another verdict resolves it", series, fires)


def _both(state: str) -> Iterator[Case]:
    labels = {"everywhere": {}, "in its cluster": {"cluster": "c1"}}
    for where, cluster in labels.items():
        seen = _seen(state, values((1, 3), GONE))
        series = seen | _told(state, values((1, 28 * FIVES)), **cluster)
        own = {minutes(k): (RUN,) if state == "collapsed" else () for k in (5, 10, 15)}
        fires = own | {minutes(k): () for k in (2 * HOUR, DAY, DAY + 20)}
        yield Case(f"what both tell fires once, the monitor {where}", series, fires, every="5m")

        series = seen | _told(state, values(missing(20 * FIVES), (1, 8 * FIVES)), **cluster)
        fires = {minutes(k): () for k in (20 * HOUR + 10, DAY + 10)}
        fires[minutes(DAY + 15)] = ({"run": "r", **cluster},)
        says = f"a day later it may be another sickness, the monitor {where}"
        yield Case(says, series, fires, every="5m")

    series = _seen(state, values(missing(10), (1, 90))) | _told(
        state, values(missing(10), (1, 20), GONE)
    )
    mine = (RUN,) if state == "collapsed" else ()
    fires = {f"{30 * k}s": (mine if k >= 10 else ()) for k in range(9, 50)}
    yield Case("at no moment both of them fire", series, fires, every="30s")


def _clusters(state: str) -> Iterator[Case]:
    series = _seen(state, values((1, 30))) | _told(state, values((1, 30)), cluster="c2")
    own = (RUN,) if state == "collapsed" else ()
    fires = {"10m": (*own, {"run": "r", "cluster": "c2"})}
    yield Case("another cluster's monitor speaks of another run", series, fires)


def collapsed_cases() -> list[Case]:
    """The verdict itself, from the agent."""
    name = "collapsed"
    series = _seen(name, values((0, 5), (1, 6), GONE))
    fires = {"4m": (), "5m": (RUN,), minutes(15 + HOUR): (RUN,), minutes(16 + HOUR): ()}
    gone = Case("a run that collapses and exits does not resolve its alert at once", series, fires)
    series = _seen(name, values((1, 20))) | _seen(name, values((0, 20)), TWIN)
    two = Case("of two runs of one name the collapsed one fires", series, {"10m": (RUN,)})
    series = _seen("squeezing", values((1, 20))) | _seen(name, values((0, 20)))
    other = Case("another verdict is silent", series, {"10m": (), "19m": ()})
    series = _seen(name, values((1, 10), missing(4), (1, 90)))
    gap = Case("a gap changes nothing", series, {"12m": (RUN,), "90m": (RUN,)})
    series = _seen(name, values((1, 11), GONE)) | _seen(name, values(missing(12), (1, 90)), AGAIN)
    again = Case("after a restart it is the same alert", series, {"13m": (RUN,), "90m": (RUN,)})
    late = _after_the_end(_seen(name, values((1, 4 * HOUR))), HOUR)
    return [gone, two, other, gap, again, late, *heard_cases(name)]


CASES = {alert_name(row): alarm_cases(row) for row in ALARMS}
CASES["ForceGaugeCollapsed"] = collapsed_cases()
