"""What a gauge does when alarms go on: tells of them, and asks the trainer to save or to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from forcegauge.alarms import alarm
from forcegauge.detectors import Judgement
from forcegauge.errors import InputError
from forcegauge.failures import Guard
from forcegauge.ranks import agreed
from forcegauge.record import read_record
from forcegauge.reporting.checkpoints import checkpoint_words
from forcegauge.reporting.story import tell

logger = logging.getLogger("forcegauge")

ACTIONS = ("log", "checkpoint", "stop")
SICK = ("squeezing", "diverging", "collapsed")
"""Verdicts on which a run is saved or stopped; alarms that only inform change no verdict."""

OnAlarm = str | Callable[[Judgement], object]
"""One of `ACTIONS`, or what is called when an alarm goes on and may return one of them."""


class Alerts:
    """Asks for what ``on_alarm`` names.

    ``should_save`` holds until the next step, ``should_stop`` to the end. Raises `InputError` for a
    word that is none.
    """

    def __init__(self, on_alarm: OnAlarm, guard: Guard) -> None:
        if not callable(on_alarm) and on_alarm not in ACTIONS:
            fix = f"Use {', '.join(ACTIONS)} or a function"
            raise InputError(f"'{on_alarm}' is nothing to do", field="on_alarm", fix=fix)
        self.should_save = False
        self.should_stop = False
        self._on_alarm, self._guard = on_alarm, guard
        self._verdict = ""

    def known(self, judgement: Judgement) -> None:
        """Take what an earlier process has told and done already."""
        self._verdict = judgement.verdict

    def tell(self, judgement: Judgement, step: int, directory: Path) -> None:
        """Log alarms that went on and do what is to be done; rank 0 only."""
        raised = [state for state in judgement.changed if state.on]
        for state in raised:
            logger.warning("%s. %s %s", state.name, state.evidence, alarm(state.name).advice)
        turned = judgement.verdict in SICK and judgement.verdict != self._verdict
        self._verdict = judgement.verdict
        with self._guard("other", step):
            if callable(self._on_alarm):
                action = self._on_alarm(judgement) if raised else None
            else:
                action = self._on_alarm if turned else None
            self._ask(action, judgement, directory)

    def agree(self) -> None:
        """Take rank 0's decision: all ranks have to call after each probe."""
        if self._on_alarm != "log":
            self.should_save, self.should_stop = agreed((self.should_save, self.should_stop))

    def _ask(self, action: object, judgement: Judgement, directory: Path) -> None:
        if action not in (None, *ACTIONS):
            raise ValueError(f"on_alarm returned {action!r}, which is none of {', '.join(ACTIONS)}")
        self.should_save = self.should_save or action == "checkpoint"
        self.should_stop = self.should_stop or action == "stop"
        if action in ("checkpoint", "stop"):
            wish = "stop" if action == "stop" else "save a checkpoint"
            verdict = f"{judgement.verdict} since step {judgement.since_step}"
            logger.warning("the trainer is asked to %s: %s. %s", wish, verdict, _back(directory))


def _back(directory: Path) -> str:
    """Which checkpoint to go back to."""
    try:
        words = checkpoint_words(tell(read_record(directory)))
    except InputError as error:
        return f"The record cannot say which checkpoint was healthy ({error})."
    return words or "No checkpoint has been saved yet."
