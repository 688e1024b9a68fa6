"""A worker's side thread: says that it lives, keeps its snapshot's lease, hears of a cancel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)


class CancelledError(Exception):
    """The snapshot that is being worked on is wanted no more."""


class StoppedError(Exception):
    """The worker is asked to end; its piece is for another one."""


@dataclass(frozen=True)
class _Work:
    keep: Callable[[], bool]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Heart(threading.Thread):
    """Beats while the worker computes: a busy worker answers no ping and reads no message.

    `alive` is told whether the worker is busy; `file` is touched at every beat, for a liveness
    probe that needs no Redis. Between blocks of its work the worker calls `check`.
    """

    def __init__(self, alive: Callable[[bool], None], file: Path | None, seconds: float) -> None:
        super().__init__(name="forcegauge-heart", daemon=True)
        self.alive, self.file, self.seconds = alive, file, seconds
        self._work: _Work | None = None
        self._stopping, self._over = threading.Event(), threading.Event()
        self._failing, self._rested = False, time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long there has been no work; 0 while there is some."""
        return 0.0 if self._work is not None else time.monotonic() - self._rested

    def run(self) -> None:
        """Beat until the worker ends."""
        while True:
            self.beat()
            if self._over.wait(self.seconds):
                return

    def beat(self) -> None:
        """One beat; what fails is said once, and tried again at the next."""
        work = self._work
        try:
            if self.file is not None:
                self.file.touch()
            self.alive(work is not None)
            if work is not None and not work.keep():
                work.cancelled.set()
            self._failing = False
        except Exception as error:
            if not self._failing:
                logger.warning("no heartbeat: %s", error, exc_info=not isinstance(error, OSError))
            self._failing = True

    @contextmanager
    def on(self, keep: Callable[[], bool]) -> Iterator[None]:
        """While it lasts, `keep` renews the lease at every beat; false from it is a cancel."""
        self._work = _Work(keep)
        try:
            yield
        finally:
            # in this order: who asks in between must not find it idle for long
            self._rested = time.monotonic()
            self._work = None

    def stop(self) -> None:
        """Have the work ended at its next block."""
        self._stopping.set()

    def close(self) -> None:
        """End the thread."""
        self._over.set()

    def check(self) -> None:
        """Raise `CancelledError` or `StoppedError` where the work is not to go on."""
        if self._work is not None and self._work.cancelled.is_set():
            raise CancelledError
        if self._stopping.is_set():
            raise StoppedError
