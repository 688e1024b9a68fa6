"""One phase of a run: its baseline, what changed since, and the verdict on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from forcegauge.alarms import ALARMS
from forcegauge.detectors import Detector, Judgement
from forcegauge.scores import Scores
from forcegauge.signals import Summary, signal_noise, signals, summarise, type_noise


@dataclass(frozen=True)
class Probe:
    """What one probe found, as it goes into the record and to the endpoint."""

    step: int
    summary: Summary
    signals: Mapping[str, float]
    noise: Mapping[str, float]
    judgement: Judgement


@dataclass
class Phase:
    """Signals against the phase's own baseline. ``layout_noise`` is by response type, in nats."""

    baseline_step: int
    baseline: Scores
    layout_noise: Mapping[str, float]
    pushes_down: bool | None = None
    start: Mapping[str, float] = field(default_factory=dict)
    detector: Detector = field(init=False)

    def __post_init__(self) -> None:
        self.detector = Detector(self.baseline_step, self.pushes_down, ALARMS)

    def first(self, behaviour: Mapping[str, float]) -> Probe:
        """The baseline itself as a probe; ``behaviour`` holds signals of greedy outputs."""
        self.start = dict(behaviour)
        found = {**self._signals(self.baseline), **behaviour}
        noise = self._noise(self.baseline)
        return Probe(
            self.baseline_step, summarise(self.baseline), found, noise, self.detector.idle()
        )

    def probe(self, step: int, scores: Scores, behaviour: Mapping[str, float]) -> Probe:
        """Judge one pass; ``behaviour`` holds signals that do not come from scores."""
        found = {**self._signals(scores), **behaviour, **self._since_start(behaviour)}
        noise = self._noise(scores)
        judgement = self.detector.update(step, found, noise)
        return Probe(step, summarise(scores), found, noise, judgement)

    def replay(
        self, step: int, signals: Mapping[str, float], noise: Mapping[str, float]
    ) -> Judgement:
        """Bring the detector to where a recorded probe left it."""
        return self.detector.update(step, signals, noise)

    def _signals(self, scores: Scores) -> dict[str, float]:
        return signals(scores, self.baseline, self.layout_noise)

    def _noise(self, scores: Scores) -> dict[str, float]:
        return {
            **type_noise(scores, self.baseline, self.layout_noise),
            **signal_noise(scores, self.baseline),
        }

    def _since_start(self, behaviour: Mapping[str, float]) -> dict[str, float]:
        now, then = (s.get("greedy_repetition_ratio") for s in (behaviour, self.start))
        return {} if now is None or then is None else {"greedy_repetition_change_ratio": now - then}


def pushes_down(loss: str | None) -> bool | None:
    """Whether a loss pushes any answer down: only SFT does not; None where it is unknown."""
    return None if loss is None else loss != "sft"
