"""Errors of the agent: kept from the training, counted, logged once each, recorded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from forcegauge.errors import InputError

logger = logging.getLogger("forcegauge")


class Guard:
    """Keeps errors from the trainer: ``with guard(reason, step): ...``.

    ``line`` is called as ``line(kind, step, facts)`` and records each of them; ``counts`` is how
    many there were, by reason.
    """

    def __init__(self, line: Callable[[str, int, Mapping[str, object]], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._line = line

    @contextmanager
    def __call__(self, reason: str, step: int) -> Iterator[None]:
        """Catch any error; ``reason`` is one of the catalogue's."""
        try:
            yield
        except Exception as error:
            kind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else reason
            self.counts[kind] += 1
            if self.counts[kind] == 1:
                detail = None if isinstance(error, InputError | OSError) else error
                logger.error("%s failed, training goes on: %s", kind, error, exc_info=detail)
            if reason != "record":
                self._record(kind, error, step)

    def _record(self, kind: str, error: Exception, step: int) -> None:
        with self("record", step):
            facts = {"reason": kind, "message": f"{type(error).__name__}: {error}"[:500]}
            self._line("error", step, facts)
