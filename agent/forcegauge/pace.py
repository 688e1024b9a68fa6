"""When the next probe is due, by what the last ones cost."""

from __future__ import annotations

import logging
import time

from forcegauge.errors import InputError
from forcegauge.ranks import agreed
from forcegauge.schedule import Schedule

logger = logging.getLogger("forcegauge")

OBSERVED_STEPS = 10
"""Forces are read at every tenth step at most: their cost stays under a percent."""


class Pace:
    """Counts the trainer's steps and the seconds that probes take; see `Schedule`.

    ``probe_seconds`` is what probes took so far, ``probed`` the step of the last one. Raises
    `InputError` for a spacing of no steps.
    """

    def __init__(self, every: int, budget: float | None) -> None:
        if every < 1:
            raise InputError(f"{every} is no spacing of probes", field="every", fix="Use 1 or more")
        self.observed_every = max(1, min(OBSERVED_STEPS, every // 2))
        self.probe_seconds = 0.0
        self.probed: int | None = None
        self._schedule = Schedule(every, budget)
        self._began: tuple[int, float] | None = None
        self._due = 0
        self._stretched = False

    @property
    def running(self) -> bool:
        """Whether the first step was told."""
        return self._began is not None

    @property
    def overhead_ratio(self) -> float | None:
        """The share of the time since the first step that probes took."""
        elapsed = time.monotonic() - self._start[1]
        return self.probe_seconds / elapsed if elapsed > 0 else None

    def begin(self, step: int) -> None:
        """The first step: a probe is due at it."""
        self._began, self._due = (step, time.monotonic()), step

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to probe now; the ``last`` step of a phase is probed too, once."""
        return step >= self._due or (last and step != self.probed)

    def resume(self, step: int, baseline: int | None) -> None:
        """Go on after a probe of an earlier process."""
        self._due = self._next(step, 0.0, baseline)

    def spent(self, step: int, seconds: float, baseline: int | None) -> None:
        """A probe at this step took so long. All ranks have to call: rank 0's clock decides.

        ``baseline`` is the step of the phase's baseline, None without one.
        """
        self.probe_seconds += seconds
        self.probed = step
        self._due = agreed(self._next(step, seconds, baseline))

    @property
    def _start(self) -> tuple[int, float]:
        assert self._began is not None
        return self._began

    def _next(self, step: int, seconds: float, baseline: int | None) -> int:
        start = self._start[0] if baseline is None else baseline
        per_step = self._step_seconds(step)
        if self._schedule.stretched(seconds, per_step) and not self._stretched:
            self._stretched = True
            logger.info("a probe takes %.1f s: spacing is stretched to keep the budget", seconds)
        return start + self._schedule.next(step - start, seconds, per_step)

    def _step_seconds(self, step: int) -> float:
        first, began = self._start
        trained = time.monotonic() - began - self.probe_seconds
        return trained / (step - first) if step > first else 0.0
