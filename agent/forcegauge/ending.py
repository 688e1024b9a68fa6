"""How a run ends: the reason that its record gets, also when the process just ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType


def reason_of(kind: type[BaseException] | None) -> str:
    """The reason that a record's end line gives when this exception ended the training."""
    if kind is None:
        return "finished"
    if issubclass(kind, SystemExit):
        return "stopped"
    return "signal" if issubclass(kind, KeyboardInterrupt) else "error"


class Ending:
    """Tells that the process ends: ``exited(reason)`` at its exit, ``terminated()`` on SIGTERM.

    SIGTERM only where nobody else listens to it, and the process dies of it as it would have. Like
    any handler in Python it runs when the interpreter does: a process that hangs in a collective
    dies by SIGKILL only.
    """

    def __init__(self, exited: Callable[[str], None], terminated: Callable[[], None]) -> None:
        self._exited, self._terminated = exited, terminated
        self._process = 0

    def listen(self) -> None:
        """Begin to listen; SIGTERM only in the main thread, for Python forbids it in others."""
        self._process = os.getpid()
        atexit.register(self._at_exit)
        free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if free and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def ignore(self) -> None:
        """Listen no more, and leave SIGTERM as it was found."""
        atexit.unregister(self._at_exit)
        mine = signal.getsignal(signal.SIGTERM) == self._handle
        if mine and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def _here(self) -> bool:
        # a forked child (a data loader's worker) inherits both, and is no end of the run
        return os.getpid() == self._process

    def _at_exit(self) -> None:
        # set where an exception ended the process
        died: type[BaseException] | None = getattr(sys, "last_type", None)
        if self._here:
            self._exited(reason_of(died) if died else "stopped")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if self._here:
            self._terminated()
        os.kill(os.getpid(), number)
