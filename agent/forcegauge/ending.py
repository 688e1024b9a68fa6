"""How a run ends: the reason that its record gets, also when SIGTERM ends the process."""

from __future__ import annotations

import os
import signal
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


class Termination:
    """Calls ``told`` when SIGTERM comes, and lets the process die of it as it would have.

    Only where nobody else listens to SIGTERM, and until `ignore`. Like any handler in Python it
    runs when the interpreter does: a process that hangs in a collective dies by SIGKILL only.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._process = 0

    def listen(self) -> None:
        """Begin to listen; nothing happens outside the main thread, where Python forbids it."""
        free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if free and threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            signal.signal(signal.SIGTERM, self._handle)

    def ignore(self) -> None:
        """Leave SIGTERM as it was found."""
        mine = signal.getsignal(signal.SIGTERM) == self._handle
        if mine and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # a forked child (a data loader's worker) inherits the handler, and is no end of the run
        if os.getpid() == self._process:
            self._told()
        os.kill(os.getpid(), number)
