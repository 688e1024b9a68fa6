"""How long the training's steps take, and what the agent takes of its time."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import fmean

import torch

RECENT = 100
"""Steps whose mean duration is what a step takes."""

PAUSES = 0.05
"""What happens at fewer than this share of the steps is no training: an evaluation or a saved
checkpoint makes the step around it look long."""


class Clock:
    """Seconds that passed inside ``with clock:``; it may be entered inside itself."""

    def __init__(self) -> None:
        self._passed, self._began, self._depth = 0.0, 0.0, 0

    @property
    def seconds(self) -> float:
        """So far, also from inside."""
        return self._passed + (time.monotonic() - self._began if self._depth else 0.0)

    def __enter__(self) -> Clock:
        if not self._depth:
            self._began = time.monotonic()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._passed += time.monotonic() - self._began


class Training:
    """Optimizer steps and their seconds without the agent's.

    ``step_seconds`` is the mean of the last `RECENT` steps without the longest of them (`PAUSES`),
    ``seconds`` the sum of these over all steps, ``observed`` how many of them were looked at.
    """

    def __init__(self) -> None:
        self.seconds = self.step_seconds = 0.0
        self.observed = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last: tuple[int, float] | None = None

    def add(self, step: int, now: float, *, observed: bool) -> None:
        """So many steps are done; ``now`` is a time that stands still where the agent works."""
        last, self._last = self._last, (step, now)
        if last is None or step <= last[0]:
            return
        steps = step - last[0]
        self.observed += observed
        self._recent.append(max(0.0, now - last[1]) / steps)
        pauses = math.ceil(PAUSES * len(self._recent)) if len(self._recent) > 2 else 0
        self.step_seconds = fmean(sorted(self._recent)[: len(self._recent) - pauses])
        self.seconds += steps * self.step_seconds


def finish_queued() -> None:
    """Wait for what the training has queued on an accelerator: it is not the agent's time."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
