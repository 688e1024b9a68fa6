"""When the next probe is due and how large it is, by what training and the last ones cost."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

from forcegauge.clocks import Clock, Training
from forcegauge.errors import InputError
from forcegauge.ranks import agreed
from forcegauge.schedule import Schedule

logger = logging.getLogger("forcegauge")

OBSERVED_STEPS = 10
"""Forces are read at every tenth step at most, and less often where that takes more than
`OBSERVED_SHARE` of the budget."""

OBSERVED_SHARE = 0.25


@dataclass(frozen=True)
class Cost:
    """Seconds of a probe: of a pass over ``all`` probes, and of what comes ``beside`` each pass."""

    all: float
    beside: float = 0.0

    def of(self, parts: int) -> float:
        """Of a probe that scores one of so many parts, on average over all of them."""
        return self.all / parts + self.beside


class Pace:
    """Counts the trainer's steps and what the agent takes of their time; see `Schedule`.

    ``most`` is into how many parts a pass may be cut (`forcegauge.rotation`). ``probe_seconds`` is
    what probes took so far, ``probed`` the step of the last one. ``parts`` and ``turn`` say what
    the next probe scores, ``observed_every`` how often forces are read. All of it is the same on
    all ranks. Raises `InputError` for a spacing of no steps.
    """

    def __init__(self, every: int, budget: float | None, most: int = 1) -> None:
        if every < 1:
            raise InputError(f"{every} is no spacing of probes", field="every", fix="Use 1 or more")
        self.observed_every = max(1, min(OBSERVED_STEPS, every // 2))
        self.probe_seconds = 0.0
        self.probed: int | None = None
        self.parts, self.turn = 1, 0
        self.ours, self.reading = Clock(), Clock()
        self._every, self._budget, self._most = every, budget, most
        self._often = self.observed_every
        self._training = Training()
        # the median of some: one probe that hung must not blind the run for a hundred times as long
        self._costs: deque[Cost] = deque(maxlen=5)
        self._began: int | None = None
        self._counted: tuple[float, float] | None = None
        self._due = 0
        self._said = False
        self._scored = 1

    @property
    def running(self) -> bool:
        """Whether the first step was told."""
        return self._began is not None

    @property
    def overhead_ratio(self) -> float | None:
        """The agent's share of the time, without the training's pauses, since the dense early
        probes; before the last of them, since the first step. None before the first step."""
        before, trained_before = self._counted or (0.0, 0.0)
        ours, trained = self._spent - before, self._training.seconds - trained_before
        return ours / (ours + trained) if trained > 0 else None

    def begin(self, step: int) -> None:
        """The first step: a probe is due at it."""
        self._began = self._due = step

    def told(self, step: int, *, observed: bool = False) -> None:
        """So many optimizer steps are done, the last one ``observed``; the agent's time is not
        theirs."""
        self._training.add(step, time.monotonic() - self._spent, observed=observed)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to probe now; the ``last`` step of a phase is probed too, once and whole."""
        again = last and (step != self.probed or self._scored > 1)
        self.parts = 1 if last else self.parts
        return step >= self._due or again

    def resume(self, step: int, baseline: int | None, turn: int, parts: int) -> None:
        """Go on after a probe of an earlier process, the ``turn``-th, one of so many parts."""
        self.turn = turn
        while self.parts < min(parts, self._most) and not self._early(step, baseline):
            self.parts *= 2
        self._due = self._next(step, 0.0, baseline)

    def spent(
        self, step: int, seconds: float, baseline: int | None, cost: Cost | None = None
    ) -> None:
        """A probe at this step took so long. All ranks have to call: rank 0's clock decides.

        ``baseline`` is the step of the phase's baseline, None without one; ``cost`` is None where
        the probe was none to learn from.
        """
        self.probe_seconds += seconds
        self.probed, self._scored = step, self.parts
        if cost is not None:
            self._costs.append(cost)
        self.parts, self._due, self.observed_every = agreed(self._plan(step, baseline))
        self.turn = self.turn + 1 if baseline is not None and step > baseline else 0
        if not self._early(step, baseline) and self._counted is None:
            self._counted = (self._spent, self._training.seconds)

    @property
    def _spent(self) -> float:
        return self.ours.seconds + self.reading.seconds

    def _plan(self, step: int, baseline: int | None) -> tuple[int, int, int]:
        cost, per_step = self._cost, self._training.step_seconds
        schedule, parts = self._schedule, 1
        if not self._early(step, baseline):
            parts = schedule.parts(cost.of, per_step, self.parts, self._most)
            self._say(parts, schedule.stretched(cost.of(parts), per_step))
        due = self._next(step, cost.of(parts), baseline)
        return parts, due, self._spaced_readings(due - step, per_step)

    @property
    def _cost(self) -> Cost:
        if not self._costs:
            return Cost(0.0)
        return Cost(median(c.all for c in self._costs), median(c.beside for c in self._costs))

    @property
    def _schedule(self) -> Schedule:
        """With the budget less what else the agent takes of it: forces, for one; half at least."""
        budget, trained = self._budget, self._training.seconds
        if budget is not None and trained > 0:
            other = (self._spent - self.probe_seconds) / trained
            budget = max(budget / 2, budget - other)
        return Schedule(self._every, budget)

    def _next(self, step: int, seconds: float, baseline: int | None) -> int:
        start = self._start(baseline)
        return start + self._schedule.next(step - start, seconds, self._training.step_seconds)

    def _early(self, step: int, baseline: int | None) -> bool:
        return baseline is None or self._schedule.early(step - baseline)

    def _start(self, baseline: int | None) -> int:
        assert self._began is not None
        return self._began if baseline is None else baseline

    def _spaced_readings(self, ahead: int, step_seconds: float) -> int:
        """Often enough for one reading before the next probe, and otherwise within its share."""
        if self._budget is None or step_seconds <= 0 or not self._training.observed:
            return self._often
        each = self.reading.seconds / self._training.observed
        spacing = math.ceil(each / (OBSERVED_SHARE * self._budget * step_seconds))
        return max(self._often, min(spacing, ahead))

    def _say(self, parts: int, stretched: bool) -> None:
        if (parts > 1 or stretched) and not self._said:
            self._said = True
            how = [f"score 1/{parts} of the set each, in turn"] if parts > 1 else []
            how += ["are spaced further apart"] if stretched else []
            logger.info("to keep the budget, later probes %s", " and ".join(how))
