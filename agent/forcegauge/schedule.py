"""When to probe: dense and log-spaced early, then every N steps, stretched to a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Steps after the phase's start at which a probe is due.

    Early probes stand at 1, 2, 4, 8, ... steps until they are ``every`` apart (runs have died in
    five steps) and are exempt from the budget; later ones at multiples of ``every``.
    ``budget`` is the share of the training time that probes may take, None for no limit.
    """

    every: int
    budget: float | None = None

    def next(self, done: int, probe_seconds: float, step_seconds: float) -> int:
        """The next due step after ``done``, both counted from the phase's start."""
        early = 1 << done.bit_length()
        if early < self.every:
            return early
        spacing = max(1, self._affordable(probe_seconds, step_seconds))
        return self.every * math.ceil((done + spacing) / self.every)

    def stretched(self, probe_seconds: float, step_seconds: float) -> bool:
        """Whether the budget spaces probes further apart than ``every``."""
        return self._affordable(probe_seconds, step_seconds) > self.every

    def _affordable(self, probe_seconds: float, step_seconds: float) -> int:
        if self.budget is None or step_seconds <= 0:
            return 0
        return math.ceil(probe_seconds / (self.budget * step_seconds))
