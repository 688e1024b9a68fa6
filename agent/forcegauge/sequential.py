"""Sequential detectors of a drift: CUSUM, EWMA, Page-Hinkley. Pure, streaming, O(1) state.

Each takes *levels against a baseline*, whose reference is 0, in units of sigma, and counts a probe
as the optimizer steps since the last one, so that a run probed twice as often is judged alike. On
first differences a CUSUM misses a steady fall for ever and depends on the spacing of probes.
Sigma is never under the noise floor; a value that is not finite changes nothing.

What they are used for: in `detectors` a `Cusum` says at which step the drift behind an alarm
began. What switches an alarm is a streak of probes, as rules and people can count it. All three
stand beside that in `make bench-alarms` (agent/alarms.md) as alarms of their own, and are here for
loops that want one; `Ewma` also smooths what the bench takes from every optimizer step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def standardised(value: float, sigma: float, floor: float) -> float:
    """The value in units of sigma, which is at least ``floor`` (in the value's unit, above 0)."""
    return value / max(sigma, floor)


@dataclass
class Cusum:
    """One-sided cumulative sum (Page, Biometrika 1954): S = max(0, S + (z - slack) steps).

    ``since`` is the step at which S last left 0: when the drift began.
    """

    slack: float = 0.5
    total: float = 0.0
    since: int | None = None

    def update(self, z: float, step: int, steps: int) -> float:
        """Take the level z at ``step``, which stands for ``steps`` optimizer steps; S, in sigmas
        times steps."""
        if not math.isfinite(z):
            return self.total
        grown = max(0.0, self.total + (z - self.slack) * steps)
        if not grown:
            self.since = None
        elif not self.total:
            self.since = step
        self.total = grown
        return grown


@dataclass
class Ewma:
    """Exponentially weighted mean (Roberts, Technometrics 1959); ``weight`` is that of one step."""

    weight: float = 0.1
    mean: float = 0.0

    def update(self, z: float, steps: int) -> float:
        """Take a level that stands for ``steps`` optimizer steps; the mean, from a start at 0."""
        if math.isfinite(z):
            self.mean += (1 - (1 - self.weight) ** steps) * (z - self.mean)
        return self.mean

    @property
    def sigma(self) -> float:
        """Standard deviation of the mean of independent levels of sigma 1, in the long run."""
        return math.sqrt(self.weight / (2 - self.weight))


@dataclass
class PageHinkley:
    """Rise above the running mean (Page 1954; Hinkley, Biometrika 1971): m - min m.

    The mean is learned from the run itself, so what is sick from the first probe on is its norm
    and never seen: not for levels whose reference is known.
    """

    slack: float = 0.5
    mean: float = 0.0
    seen: int = 0
    total: float = 0.0
    lowest: float = 0.0

    def update(self, z: float, steps: int) -> float:
        """Take a level that stands for ``steps`` optimizer steps; m - min m, in sigmas x steps."""
        if math.isfinite(z):
            self.seen += steps
            self.mean += (z - self.mean) * steps / self.seen
            self.total += (z - self.mean - self.slack) * steps
            self.lowest = min(self.lowest, self.total)
        return self.total - self.lowest
