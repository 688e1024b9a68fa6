"""From signals to alarms and the verdict: pure, streaming, O(1) state.

One `Detector` lives for one phase and sees every probe after the phase's baseline, in order.
Persistence is counted in probes, so that a rule needs no clock; replaying a record through a new
detector restores its state exactly, which is what a resumed run does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from forcegauge.alarms import (
    ALARMS,
    COLLAPSE,
    QUIET_PROBES,
    UNKNOWN_PUSH_FACTOR,
    WARMING_PROBES,
    Alarm,
    Condition,
)
from forcegauge.alarms import alarm as alarm_named
from forcegauge.sequential import Cusum

JOINT_SHARE = 0.5
FALL_NATS = 0.5


@dataclass(frozen=True)
class AlarmState:
    """One alarm after a probe; ``streak`` counts probes, ``value`` is None while undefined.

    ``since_step`` is where the drift began that the alarm is about: the probe at which a CUSUM of
    its signal, in units of its threshold, last left 0. ``evidence`` is the sentence of numbers
    with which the alarm last held.
    """

    name: str
    value: float | None
    threshold: float
    streak: int
    needed: int
    quiet: int = 0
    since_step: int | None = None
    evidence: str = ""

    @property
    def on(self) -> bool:
        """Whether the alarm is on."""
        return self.streak >= self.needed


@dataclass(frozen=True)
class Judgement:
    """What is known after a probe: the verdict in one word, since when, why, and what to do."""

    verdict: str
    since_step: int
    evidence: str
    advice: str
    alarms: Mapping[str, AlarmState]
    changed: tuple[AlarmState, ...] = ()

    @property
    def healthy(self) -> bool:
        """No alarm is on."""
        return not any(state.on for state in self.alarms.values())


@dataclass
class Detector:
    """Streaming state of one phase. ``alarms`` may hold a run's own thresholds.

    ``pushes_down``: whether the loss pushes any answer down, None when nobody knows; measured
    forces overrule it.
    """

    baseline_step: int
    pushes_down: bool | None = None
    alarms: Sequence[Alarm] = ALARMS
    _states: dict[str, AlarmState] = field(default_factory=dict)
    _drifts: dict[str, Cusum] = field(default_factory=dict)
    _step: int | None = None
    _pushed: bool = False
    _probes: int = 0
    _joint: bool | None = None
    _latched: Judgement | None = None
    _verdict: str = "warming"
    _since: int | None = None

    def idle(self) -> Judgement:
        """What holds before any probe: warming, no alarm."""
        for row in self.alarms:
            threshold = row.conditions[0].threshold(0.0, self._factor(row))
            self._states[row.name] = AlarmState(row.name, None, threshold, 0, row.streak)
        return self._judge(self.baseline_step, {})

    def update(
        self, step: int, signals: Mapping[str, float], noise: Mapping[str, float]
    ) -> Judgement:
        """Take one probe's signals (by name, absent when undefined) and their noise; judge."""
        self._probes += 1
        known = {**signals, **self._joint_fall(signals)}
        # a clipped loss stops pushing where it has squeezed already: one push in the phase counts
        if "force_down_norm" in signals:
            self._pushed = self._pushed or signals["force_down_norm"] > 0
            self.pushes_down = self._pushed
        before = dict(self._states)
        for row in self.alarms:
            self._states[row.name] = self._advance(row, step, known, noise)
        self._step = step
        changed = tuple(
            state
            for name, state in self._states.items()
            if state.on != (name in before and before[name].on)
        )
        return replace(self._judge(step, known), changed=changed)

    def _joint_fall(self, signals: Mapping[str, float]) -> dict[str, float]:
        """How far chosen *and* untrained fell, if they did from the phase's first fall on."""
        chosen = signals.get("chosen_change_nats")
        untrained = signals.get("untrained_change_nats")
        if chosen is None or untrained is None:
            return {}
        if self._joint is None and min(chosen, untrained) < -FALL_NATS:
            self._joint = chosen < JOINT_SHARE * untrained and chosen < 0
        return {"joint_fall_nats": max(0.0, min(-chosen, -untrained))} if self._joint else {}

    def _advance(
        self, row: Alarm, step: int, signals: Mapping[str, float], noise: Mapping[str, float]
    ) -> AlarmState:
        factor = self._factor(row)
        first = row.conditions[0]
        state = replace(
            self._states.get(row.name, AlarmState(row.name, None, 0.0, 0, row.streak)),
            value=signals.get(first.signal),
            threshold=first.threshold(noise.get(first.signal, 0.0), factor),
        )
        began = self._drift(row, state, step)
        held = _holds(row, signals, noise, factor, self.pushes_down)
        if held is None:
            return state
        state = _count(state, held, began)
        return replace(state, evidence=_evidence(row, state, signals, factor)) if held else state

    def _drift(self, row: Alarm, state: AlarmState, step: int) -> int:
        """Take the leading signal's level; the step at which its present drift began."""
        drift = self._drifts.setdefault(row.name, Cusum())
        before = self.baseline_step if self._step is None else self._step
        if state.value is not None and row.conditions[0].above == (state.threshold > 0):
            drift.update(state.value / state.threshold, step, max(1, step - before))
        return step if drift.since is None else drift.since

    def _factor(self, row: Alarm) -> float:
        return UNKNOWN_PUSH_FACTOR if row.needs_push and self.pushes_down is None else 1.0

    def _judge(self, step: int, signals: Mapping[str, float]) -> Judgement:
        if self._latched is not None:
            return replace(self._latched, alarms=dict(self._states))
        verdict, leading = self._verdict_now()
        since = self._since_step(verdict, leading, step)
        self._verdict, self._since = verdict, since
        speaking = leading or next((s for s in self._states.values() if s.on), None)
        evidence = speaking.evidence if speaking else _calm(verdict, signals)
        judgement = Judgement(
            verdict,
            since,
            f"{speaking.name} is on. {evidence}" if speaking and not leading else evidence,
            alarm_named(speaking.name).advice if speaking else ADVICE[verdict],
            dict(self._states),
        )
        if verdict == "collapsed":
            self._latched = judgement
        return judgement

    def _verdict_now(self) -> tuple[str, AlarmState | None]:
        on = {name: state for name, state in self._states.items() if state.on}
        diverging = on.get("diverging") or on.get("entropy_surge")
        squeezing = on.get("squeezing")
        for name in COLLAPSE:
            if name in on and (diverging or squeezing or on[name].streak >= 2 * on[name].needed):
                return "collapsed", on[name]
        if diverging:
            return "diverging", diverging
        if squeezing:
            return "squeezing", squeezing
        return ("warming" if self._probes < WARMING_PROBES else "learning"), None

    def _since_step(self, verdict: str, leading: AlarmState | None, step: int) -> int:
        if verdict == self._verdict and self._since is not None:
            return self._since
        if leading is not None and leading.since_step is not None:
            return leading.since_step
        return self.baseline_step if verdict == "warming" else step


ADVICE = {
    "warming": "Nothing to do yet: the first probes are still coming in.",
    "learning": "Nothing to do.",
}


def _holds(
    row: Alarm,
    signals: Mapping[str, float],
    noise: Mapping[str, float],
    factor: float,
    pushes_down: bool | None,
) -> bool | None:
    """Whether the alarm holds; None where its signals are not defined."""
    if any(_met(each, signals, noise, 1.0) for each in row.or_else):
        return True
    if row.needs_push and pushes_down is False:
        return False
    met = [_met(each, signals, noise, factor) for each in row.conditions]
    if False in met:
        return False
    return None if None in met else True


def _met(
    condition: Condition, signals: Mapping[str, float], noise: Mapping[str, float], factor: float
) -> bool | None:
    value = signals.get(condition.signal)
    if value is None or not math.isfinite(value):
        return None
    scale = factor if condition.signal.endswith("_nats") else 1.0
    return condition.holds(value, condition.threshold(noise.get(condition.signal, 0.0), scale))


def _count(state: AlarmState, held: bool, began: int) -> AlarmState:
    if held:
        since = state.since_step if state.streak else began
        return replace(state, streak=state.streak + 1, quiet=0, since_step=since)
    if state.on and state.quiet + 1 < QUIET_PROBES:
        return replace(state, quiet=state.quiet + 1)
    return replace(state, streak=0, quiet=0, since_step=None)


def _evidence(row: Alarm, state: AlarmState, signals: Mapping[str, float], factor: float) -> str:
    facts = [
        f"{LABELS.get(each.signal, each.signal)} {_number(each.signal, signals[each.signal])}"
        for each in (*row.conditions, *row.or_else)
        if each.signal in signals
    ]
    doubt = " (the loss is unknown: sizes doubled)" if factor > 1 else ""
    running = f"{state.streak} probe{'s' if state.streak > 1 else ''} running{doubt}"
    return f"Since step {state.since_step}: {', '.join(facts)}; {running}."


def _calm(verdict: str, signals: Mapping[str, float]) -> str:
    if verdict == "warming":
        return "Too few probes since the baseline to say anything."
    shown = ("chosen_change_nats", "untrained_change_nats", "squeeze_nats")
    facts = [f"{LABELS[s]} {_number(s, signals[s])}" for s in shown if s in signals]
    return "No alarm: " + (", ".join(facts) or "no signal is defined yet") + "."


LABELS = {
    "squeeze_nats": "squeeze index",
    "squeeze_excess_nats": "squeeze beyond sharpening",
    "squeezed_probes_ratio": "probes squeezed",
    "unearned_fall_nats": "untrained answers lost, beyond what chosen gained,",
    "joint_fall_nats": "chosen and untrained answers both fell by",
    "chosen_change_nats": "chosen answers moved",
    "untrained_change_nats": "untrained answers moved",
    "hallucination_pressure_nats": "pull on answers to other prompts",
    "other_prompt_change_nats": "answers to other prompts moved",
    "displacement_nats": "chosen answers fell, while the margin grows, by",
    "pushed_mass_change_ratio": "argmax mass gained in untrained contexts",
    "valley_force_ratio": "push on tokens that are unlikely already",
    "squeeze_law_ratio": "push that only feeds the argmax",
    "nonfinite_ratio": "responses without a finite score",
    "loss_nonfinite_ratio": "losses that are not finite",
    "entropy_change_nats": "entropy moved",
    "entropy_left_ratio": "entropy left",
    "greedy_repetition_ratio": "repeated n-grams in greedy outputs",
    "greedy_repetition_change_ratio": "repetition gained",
    "eos_change_nats": "end-of-sequence moved",
}
"""How evidence names a signal."""


def _number(signal: str, value: float) -> str:
    return f"{value:.0%}" if signal.endswith("_ratio") else f"{value:+.2f} nats"
