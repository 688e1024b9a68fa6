"""What happened in the runs, told a Grafana as annotations: each event once.

The events stay in the store, which counts how many of a run's were told. Between a telling and its
count a process may die: what is there already is looked up first, by run, time and text.
"""

from __future__ import annotations

import html
import logging
import time
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

from forcegauge.errors import InputError
from forcegauge.textfiles import first_line
from forcegauge_monitor.grafana_http import AwayError, Grafana, RefusedError, open_grafana
from forcegauge_monitor.records import Event, Unannotated
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store

logger = logging.getLogger(__name__)

ROUND_EVENTS = 100
ROUND_SECONDS = 5.0
"""After so many events, or so long, the rest waits for the next round, and other chores do not."""

REQUEST_SECONDS = 5.0
LOOKED_UP = 1000
"""Annotations of one run within the time of what is to be told; at most 200 of its events wait."""

_NEVER = (400, 413, 422)
"""What Grafana does not take now it will not take later."""


class Annotator:
    """Tells the Grafana of the settings, and logs once why it cannot."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._said = ""

    def annotate(self) -> None:
        """One round; what cannot be told now waits. Raises `Unavailable` while Redis is away."""
        try:
            with self._store.alone("annotating", 60) as mine:
                if mine:
                    self._round()
            self._said = ""
        except (RefusedError, AwayError, InputError) as error:
            if str(error) != self._said:
                logger.warning("no annotations: %s", first_line(error))
            self._said = str(error)

    def _round(self) -> None:
        waiting = self._store.unannotated(ROUND_EVENTS)
        if not waiting:
            return
        end = time.monotonic() + ROUND_SECONDS
        with open_grafana(self._settings, timeout=REQUEST_SECONDS, pauses=()) as grafana:
            for run in waiting:
                if not self._tell(grafana, run, end):
                    break

    def _tell(self, grafana: Grafana, waiting: Unannotated, end: float) -> bool:
        """Tell what waits of one run; false when the round is over."""
        there = _there(grafana, waiting)
        for done, event in enumerate(waiting.events, start=waiting.done + 1):
            if time.monotonic() > end:
                return False
            told = annotation(waiting.run, event)
            if (told["time"], told["text"]) not in there:
                _post(grafana, told)
            self._store.annotated(waiting.run, waiting.record_id, done)
        return True


def annotation(run: str, event: Event) -> dict[str, Any]:
    """The annotation of an event, as Grafana's HTTP API takes it; time in milliseconds."""
    # Grafana shows the text as HTML
    text = html.escape(f"{run}, step {event.step}: {_words(event)}", quote=False)
    tags = ["forcegauge", f"forcegauge-run:{run}", f"forcegauge-{event.kind}"]
    return {"time": round(event.time * 1000), "tags": tags, "text": text}


def _words(event: Event) -> str:
    if event.kind == "phase":
        return f"phase {event.text} begins"
    if event.kind == "checkpoint":
        return f"{PurePath(event.path).name or 'checkpoint'}, {event.text}".rstrip(", ")
    return event.text or event.kind


def _there(grafana: Grafana, waiting: Unannotated) -> set[tuple[int, str]]:
    """Time and text of the run's annotations from the first to the last of what waits."""
    times = [round(event.time * 1000) for event in waiting.events]
    tags = [("tags", "forcegauge"), ("tags", f"forcegauge-run:{waiting.run}")]
    span = [("from", min(times)), ("to", max(times)), ("limit", LOOKED_UP)]
    found = grafana.call("GET", f"/annotations?{urlencode([*tags, *span])}")
    return {(each["time"], each["text"]) for each in found}


def _post(grafana: Grafana, told: dict[str, Any]) -> None:
    try:
        grafana.call("POST", "/annotations", told)
    except RefusedError as error:
        if error.status not in _NEVER:
            raise
        logger.warning("an event is left out: %s", first_line(error))
