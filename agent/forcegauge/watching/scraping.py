"""Watches a run by the metrics of its agent: keeps a history of its own, asks for nothing else."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client.parser import text_string_to_metric_families

from forcegauge.alarms import ALARMS, COLLAPSE, alarm
from forcegauge.catalogue import INFO_LABELS, PREFIX, signal_metric
from forcegauge.detectors import ADVICE, LABELS, AlarmState
from forcegauge.errors import InputError, RunError
from forcegauge.probes import RESPONSE_TYPES, UNTRAINED_NATURAL
from forcegauge.reporting.safe import plain
from forcegauge.watching.view import Series, View, argmax_gain
from forcegauge.watching.words import Readings, line_signals, probe_line

TIMEOUT_SECONDS = 5.0
LONGEST_PAGE = 16 << 20
KEPT = 512
"""Probes of which the course is kept at most."""

OUT_OF_REACH = (OSError, http.client.HTTPException, ValueError)
SIGNALS = (
    "squeeze_nats",
    "hallucination_pressure_nats",
    "force_up_norm",
    "force_down_norm",
    "valley_force_ratio",
)


@dataclass
class History:
    """What scrapes saw of one run: one row per probe, evenly thinned when they become many."""

    rows: list[tuple[int, Readings]] = field(default_factory=list)
    phase: str = ""

    def add(self, readings: Readings) -> None:
        """Take one scrape; only the first of a probe counts."""
        step, phase = int(readings[("probe_step",)]), _info(readings, "phase")
        if phase != self.phase:
            self.rows, self.phase = [], phase
        if self.rows and self.rows[-1][0] == step:
            return
        self.rows = [row for row in self.rows if row[0] < step]
        self.rows.append((step, readings))
        if len(self.rows) > KEPT:
            self.rows = [*self.rows[:-2:2], *self.rows[-2:]]

    def series(self, *key: str) -> Series:
        """The course of one reading."""
        return Series([step for step, _ in self.rows], [row.get(key) for _, row in self.rows])


class Agent:
    """Scrapes the metrics of one agent, ``http://host:port``, and keeps its own history.

    Raises `RunError` where nobody answers at first, `InputError` where the run is not there.
    """

    def __init__(self, url: str, run: str | None) -> None:
        self._url, self._run = url.rstrip("/").removesuffix("/metrics"), run
        self._history = History()
        self._latest: Readings = {}
        self._failed: float | None = None
        self._scrape()

    def views(self) -> Iterator[View]:
        """Look once more; an agent that does not answer any more is shown as it was."""
        try:
            self._scrape()
            self._failed = None
        except RunError:
            self._failed = self._failed or time.time()
        yield self.view()

    def view(self) -> View:
        """The run as it was at the last scrape."""
        notes = []
        if self._failed is not None:
            when = time.strftime("%H:%M:%S", time.localtime(self._failed))
            notes.append(f"The agent does not answer since {when}: it ended, or is out of reach.")
        return replace(scraped_view(self._run or "", self._latest, self._history), notes=notes)

    def _scrape(self) -> None:
        runs = by_run(fetch(f"{self._url}/metrics"))
        if self._run not in runs and self._failed is None and not self._latest:
            self._run = _chosen_run(self._run, runs, self._url)
        self._latest = runs.get(self._run or "", self._latest)
        if ("probe_step",) in self._latest:
            self._history.add(self._latest)


def fetch(url: str) -> str:
    """The text of a page; raises `RunError` where there is none to be had."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as page:
            text: bytes = page.read(LONGEST_PAGE)
    except OUT_OF_REACH as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(f"nothing answers at {url} ({plain(reason)})") from None
    return text.decode(errors="replace")


def by_run(text: str) -> Mapping[str, Readings]:
    """The readings of each run on a page of metrics; raises `RunError` for what is none."""
    runs: dict[str, dict[tuple[str, ...], float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name.startswith(PREFIX) and "run" in labels:
                    others = (labels[label] for label in sorted(labels.keys() - {"run"}))
                    key = (name.removeprefix(PREFIX), *others)
                    runs.setdefault(labels["run"], {})[key] = value
    except (ValueError, KeyError, IndexError):
        raise RunError("what answers there is neither an agent nor a monitor") from None
    return runs


def _chosen_run(run: str | None, runs: Mapping[str, Readings], url: str) -> str:
    if not runs:
        fix = "Its training may not have begun: look again in a moment"
        raise InputError(f"{url} serves no metrics of a run", fix=fix)
    if run is not None and run in runs:
        return run
    if run is None and len(runs) == 1:
        return next(iter(runs))
    problem = f"{url} has no run '{run}'" if run else f"{url} has several runs"
    raise InputError(problem, field="--run", fix=f"Name one of: {', '.join(map(plain, runs))}")


def scraped_view(run: str, latest: Readings, history: History) -> View:
    """A run as its metrics tell of it: no advice beyond the table of alarms, no evidence beyond
    sizes."""
    if not history.rows:
        return View(name=run, phase=_info(latest, "phase"), model=_info(latest, "model"))
    alarms = _alarms(latest)
    on = {each.name: each for each in alarms if each.on}
    verdict = _verdict(latest)
    leading = _leading(verdict, on)
    steps = [step for step, _ in history.rows]
    signals = _signals(history)
    return View(
        name=run,
        phase=_info(latest, "phase"),
        model=_info(latest, "model"),
        step=steps[-1],
        train_step=int(latest.get(("train_step",), steps[-1])),
        verdict=verdict,
        since=_since(latest),
        evidence=_evidence(leading),
        advice=alarm(leading.name).advice if leading else ADVICE.get(verdict, ""),
        changes=_changes(history),
        signals=signals,
        alarms=alarms,
        seconds=latest.get(("probe_duration_seconds",)),
        overhead=latest.get(("probe_overhead_ratio",)),
        next_step=2 * steps[-1] - steps[-2] if len(steps) > 1 else None,
        heard=latest.get(("probe_timestamp_seconds",)),
        spacing=_spacing(history),
        ended="as its agent says" if latest.get(("run_active",)) == 0 else None,
        lines=[(step, _line(step, readings)) for step, readings in history.rows],
    )


def _info(readings: Readings, label: str) -> str:
    place = 1 + sorted(INFO_LABELS).index(label)
    return next((key[place] for key in readings if key[0] == "run_info"), "")


def _verdict(readings: Readings) -> str:
    return next((key[1] for key, on in readings.items() if key[0] == "run_state" and on), "")


def _since(readings: Readings) -> int | None:
    since = readings.get(("verdict_since_step",))
    return None if since is None else int(since)


def _leading(verdict: str, on: Mapping[str, AlarmState]) -> AlarmState | None:
    """The alarm that made the verdict, or any that is on."""
    makers = {"diverging": ("diverging", "entropy_surge"), "collapsed": COLLAPSE}
    named = next((on[name] for name in makers.get(verdict, (verdict,)) if name in on), None)
    return named or next(iter(on.values()), None)


def _evidence(leading: AlarmState | None) -> str:
    if leading is None or leading.value is None:
        return ""
    signal = alarm(leading.name).conditions[0].signal
    form, unit = (".0%", "") if signal.endswith("_ratio") else ("+.2f", " nats")
    sizes = f"{leading.value:{form}}{unit}, limit {leading.threshold:{form}}"
    return f"{leading.name}: {LABELS.get(signal, signal)} {sizes}; {leading.streak} probes running."


def _alarms(readings: Readings) -> tuple[AlarmState, ...]:
    return tuple(
        AlarmState(
            row.name,
            readings.get(("alarm_value", row.name)),
            readings.get(("alarm_threshold", row.name), 0.0),
            int(readings[("alarm_streak", row.name)]),
            int(readings.get(("alarm_streak_needed", row.name), row.streak)),
        )
        for row in ALARMS
        if ("alarm_streak", row.name) in readings
    )


def _changes(history: History) -> dict[str, Series]:
    found = {name: history.series("logprob_change_nats", name) for name in RESPONSE_TYPES}
    return {name: series for name, series in found.items() if any_known(series)}


def any_known(series: Series) -> bool:
    """Whether there is any value in it."""
    return any(value is not None for value in series.values)


def _signals(history: History) -> dict[str, Series]:
    found = {name: history.series(*_key(name)) for name in SIGNALS}
    found["untrained_change_nats"] = Series(
        [step for step, _ in history.rows], [_untrained(row) for _, row in history.rows]
    )
    known = {name: series for name, series in found.items() if any_known(series)}
    return {**known, **argmax_gain(known)}


def _key(signal: str) -> tuple[str, ...]:
    row, labels = signal_metric(signal) or (None, ())
    return (row.name.removeprefix(PREFIX) if row else signal, *labels)


def _untrained(readings: Readings) -> float | None:
    keys = [("logprob_change_nats", name) for name in UNTRAINED_NATURAL]
    known = [readings[key] for key in keys if key in readings]
    return sum(known) / len(known) if known else None


def _spacing(history: History) -> float | None:
    times: Sequence[float | None] = history.series("probe_timestamp_seconds").values[-2:]
    if len(times) < 2 or times[0] is None or times[1] is None:
        return None
    return times[1] - times[0]


def _line(step: int, readings: Readings) -> str:
    return probe_line(
        step,
        _verdict(readings),
        _since(readings),
        line_signals(readings),
        readings.get(("probe_duration_seconds",)),
        [each.name for each in _alarms(readings) if each.on],
    )
