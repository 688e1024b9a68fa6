"""Shows a run until it ends or somebody has seen enough: a live screen, or a line per probe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live

from forcegauge.reporting.safe import plain
from forcegauge.watching.following import Follower
from forcegauge.watching.screen import screen
from forcegauge.watching.view import View, record_view

LINGER_SECONDS = 60.0
"""After an end a next phase is waited for: many scripts train twice in a row."""


class Source(Protocol):
    """Where views of a run come from."""

    def views(self) -> Iterator[View]:
        """Look once more: what is there now, and on the way what would be missed otherwise."""
        ...


class Recorded:
    """The views of a record in a run's directory."""

    def __init__(self, directory: Path) -> None:
        self._follower = Follower(directory)
        self._glance = self._follower.glance()

    def views(self) -> Iterator[View]:
        """Read on; of a long record the end is shown while the rest is read."""
        for course in self._follower.read():
            left = self._follower.left
            if self._glance is not None and left > 0:
                note = f"Reading the record: {left / 1e9:.1f} GB are left."
                yield record_view(self._glance, [note])
            else:
                self._glance = None
                yield record_view(course, self._notes())

    def _notes(self) -> list[str]:
        gone = f"{self._follower.path} is not there any more."
        return [gone] if self._follower.missing else []


def watch(source: Source, console: Console, seconds: float) -> None:
    """A screen where one can be drawn, else lines; until the run has ended, or Ctrl-C."""
    drawable = console.is_terminal and not console.is_dumb_terminal
    way = watch_live if drawable and not console.options.ascii_only else watch_plain
    try:
        way(source, console, seconds)
    except KeyboardInterrupt:
        return


def watch_plain(source: Source, console: Console, seconds: float) -> None:
    """One line per probe, and what to do whenever the verdict changes."""
    lines = PlainLines()
    while True:
        for view in source.views():
            for line in lines.fresh(view):
                # by hand: a screen would break it, and a pipe be told of it late
                console.file.write(f"{_encodable(line, console)}\n")
            console.file.flush()
        if _over(view):
            return
        time.sleep(seconds)


def _encodable(text: str, console: Console) -> str:
    return text.encode(console.encoding, "replace").decode(console.encoding)


class PlainLines:
    """What is new in each view, as lines."""

    def __init__(self) -> None:
        self._phase, self._step = "", -1
        self._verdict = ""
        self._notes: Sequence[str] = ()
        self._ended: str | None = None

    def fresh(self, view: View) -> Iterator[str]:
        """The lines of new probes, a new verdict with its advice, notes, and the end."""
        if view.phase != self._phase:
            self._phase, self._step = view.phase, -1
        yield from (line for step, line in view.lines if step > self._step)
        # a resume may have gone back: from there on steps come again
        self._step = max((step for step, _ in view.lines), default=-1)
        if view.verdict != self._verdict:
            self._verdict = view.verdict
            said = (view.evidence, view.advice, view.checkpoint)
            yield from (f"forcegauge: {plain(text)}" for text in said if text)
        yield from (f"forcegauge: {plain(note)}" for note in view.notes if note not in self._notes)
        self._notes = view.notes
        if view.ended is not None and view.ended != self._ended:
            yield f"forcegauge: the run has ended: {plain(view.ended)}"
        self._ended = view.ended


def watch_live(source: Source, console: Console, seconds: float) -> None:
    """A screen that is drawn anew; what it showed last stays in the terminal."""
    view = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while view is None or not _over(view):
                if view is not None:
                    time.sleep(seconds)
                for view in source.views():
                    live.update(screen(view, console.width, console.height), refresh=True)
    finally:
        if view is not None:
            # a line less: the prompt comes below it
            console.print(screen(view, console.width, console.height - 1))


def _over(view: View) -> bool:
    """Ended, and no next phase came."""
    return view.ended is not None and time.time() - (view.heard or 0.0) > LINGER_SECONDS
