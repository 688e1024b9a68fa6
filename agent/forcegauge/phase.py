"""One phase of a run: its baseline, what changed since, and the verdict on it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forcegauge.alarms import ALARMS, Alarm
from forcegauge.detectors import Detector, Judgement
from forcegauge.errors import InputError
from forcegauge.rl import rl_signals
from forcegauge.scores import Scores
from forcegauge.signals import Summary, signal_noise, signals, summarise, type_noise

if TYPE_CHECKING:
    from forcegauge.record import Line


@dataclass(frozen=True)
class Probe:
    """What one probe found, as it goes into the record and to the endpoint."""

    step: int
    summary: Summary
    signals: Mapping[str, float]
    noise: Mapping[str, float]
    judgement: Judgement
    scored: int = 0
    """Probes that were scored; 0 where it is not known."""


@dataclass
class Phase:
    """Signals against the phase's own baseline. ``layout_noise`` is by response type, in nats.

    ``alarms`` may have a run's own thresholds (`alarms_with`); ``start`` holds the phase's first
    value of signals that do not come from scores.
    """

    baseline_step: int
    baseline: Scores
    layout_noise: Mapping[str, float]
    pushes_down: bool | None = None
    alarms: Sequence[Alarm] = ALARMS
    start: dict[str, float] = field(default_factory=dict)
    detector: Detector = field(init=False)
    _before: Detector = field(init=False)
    _told: Judgement | None = None
    _step: int | None = None

    def __post_init__(self) -> None:
        self.detector = Detector(self.baseline_step, self.pushes_down, self.alarms)
        self._before = deepcopy(self.detector)

    def first(self, behaviour: Mapping[str, float]) -> Probe:
        """The baseline itself as a probe; ``behaviour`` holds signals of greedy outputs."""
        self.start = dict(behaviour)
        found = {**self._signals(self.baseline), **behaviour}
        noise = self._noise(self.baseline)
        judgement, scored = self._idle(), int(self.baseline.scored.sum())
        return Probe(self.baseline_step, summarise(self.baseline), found, noise, judgement, scored)

    def probe(self, step: int, scores: Scores, behaviour: Mapping[str, float]) -> Probe:
        """Judge one pass; ``behaviour`` holds signals that do not come from scores."""
        self._remember(behaviour)
        found = {**self._signals(scores), **behaviour, **self._since_start(behaviour)}
        noise = self._noise(scores)
        judgement, summary = self._update(step, found, noise), summarise(scores, self.baseline)
        return Probe(step, summary, found, noise, judgement, int(scores.scored.sum()))

    def replayed(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Probe]]:
        """Bring the detector to where recorded probes left it: each with what it found then, the
        baseline first."""
        start, *later = lines
        yield start, self.first(start["signals"])
        for line in later:
            self._remember(line["signals"])
            judgement = self._update(line["step"], line["signals"], line["noise"])
            facts = (line["scores"], line["signals"], line["noise"], judgement)
            yield line, Probe(line["step"], *facts, line.get("probes_scored", 0))

    def _idle(self) -> Judgement:
        self._told = self.detector.idle()
        return self._told

    def _update(
        self, step: int, signals: Mapping[str, float], noise: Mapping[str, float]
    ) -> Judgement:
        """A step that is probed again, whole after a part, counts once: the last one stands."""
        if step == self._step:
            self.detector = self._before
        self._before, self._step = deepcopy(self.detector), step
        judged, told = self.detector.update(step, signals, noise), self._told
        if told is not None:
            turned = (s for n, s in judged.alarms.items() if s.on != told.alarms[n].on)
            judged = replace(judged, changed=tuple(turned))
        self._told = judged
        return judged

    def _signals(self, scores: Scores) -> dict[str, float]:
        own = signals(scores, self.baseline, self.layout_noise)
        return {**own, **rl_signals(scores, self.baseline)}

    def _noise(self, scores: Scores) -> dict[str, float]:
        return {
            **type_noise(scores, self.baseline, self.layout_noise),
            **signal_noise(scores, self.baseline),
        }

    def _remember(self, behaviour: Mapping[str, float]) -> None:
        """Nothing is sampled before the training: the first length is the one to compare with."""
        if LENGTH in behaviour:
            self.start.setdefault(LENGTH, behaviour[LENGTH])

    def _since_start(self, behaviour: Mapping[str, float]) -> dict[str, float]:
        found = {}
        both = behaviour.keys() & self.start.keys()
        if "greedy_repetition_ratio" in both:
            gained = behaviour["greedy_repetition_ratio"] - self.start["greedy_repetition_ratio"]
            found["greedy_repetition_change_ratio"] = gained
        if LENGTH in both and self.start[LENGTH] > 0:
            found["sample_length_drift_ratio"] = behaviour[LENGTH] / self.start[LENGTH] - 1.0
        return found


LENGTH = "sample_length_tokens"


def alarms_with(thresholds: Mapping[str, float]) -> tuple[Alarm, ...]:
    """The alarms, the named ones with another size of their first condition.

    Raises `InputError` for a name that is no alarm, or a size that would mean something else.
    """
    rows = {row.name: row for row in ALARMS}
    for name, size in thresholds.items():
        if name not in rows:
            fix = f"The alarms are {', '.join(rows)}"
            raise InputError(f"'{name}' is no alarm", field="thresholds", fix=fix)
        rows[name] = _with_size(rows[name], size)
    return tuple(rows.values())


def _with_size(row: Alarm, size: float) -> Alarm:
    first, *others = row.conditions
    if not math.isfinite(size) or size * first.size <= 0:
        sign = "negative" if first.size < 0 else "positive"
        problem = f"{size} is no size of {first.signal}, which '{row.name}' looks at"
        fix = f"Give a {sign} number; the default is {first.size:g}"
        raise InputError(problem, field="thresholds", fix=fix)
    return replace(row, conditions=(replace(first, size=float(size)), *others))


def pushes_down(loss: str | None) -> bool | None:
    """Whether a loss pushes any answer down: only SFT does not; None where it is unknown."""
    return None if loss is None else loss != "sft"
