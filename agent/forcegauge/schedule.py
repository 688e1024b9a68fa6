"""When to probe, and how much: dense and log-spaced early, then every N steps within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MARGIN = 0.8
"""Parts grow again when the larger ones take this share of what they may: else they would change
from probe to probe."""


@dataclass(frozen=True)
class Schedule:
    """Steps after the phase's start at which a probe is due.

    Early probes stand at 1, 2, 4, 8, ... steps until they are ``every`` apart (runs have died in
    five steps) and are exempt from the budget; later ones at multiples of ``every``.
    ``budget`` is the share of the training time that probes may take, None for no limit.
    """

    every: int
    budget: float | None = None

    def early(self, done: int) -> bool:
        """Whether the probe after this one is one of the dense early ones."""
        return 1 << done.bit_length() < self.every

    def next(self, done: int, probe_seconds: float, step_seconds: float) -> int:
        """The next due step after ``done``, both counted from the phase's start."""
        if self.early(done):
            return 1 << done.bit_length()
        spacing = max(1, self._affordable(probe_seconds, step_seconds))
        return self.every * math.ceil((done + spacing) / self.every)

    def parts(self, cost: Callable[[int], float], step_seconds: float, now: int, most: int) -> int:
        """How many parts a pass is cut into so that one fits at every ``every`` steps.

        ``cost`` is the seconds of one of so many parts, ``now`` how many there are, ``most`` the
        most that there can be; both powers of two.
        """
        parts = now
        while parts > 1 and not self.stretched(cost(parts // 2), MARGIN * step_seconds):
            parts //= 2
        while parts < most and self.stretched(cost(parts), step_seconds):
            parts *= 2
        return parts

    def stretched(self, probe_seconds: float, step_seconds: float) -> bool:
        """Whether the budget spaces probes further apart than ``every``."""
        return self._affordable(probe_seconds, step_seconds) > self.every

    def _affordable(self, probe_seconds: float, step_seconds: float) -> int:
        if self.budget is None or step_seconds <= 0:
            return 0
        return math.ceil(probe_seconds / (self.budget * step_seconds))
