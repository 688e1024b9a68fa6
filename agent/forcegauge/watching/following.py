"""Follows a run's record while it is written: reads only, survives whatever happens to the file."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

from forcegauge.errors import InputError
from forcegauge.record import RECORD_NAME
from forcegauge.watching.course import Course, parsed

SLICE = 64 << 20
"""Bytes that are read between two looks at the screen."""
GLANCE = 1 << 20
"""Bytes at the end of a longer record from which the first screen is made."""
LONGEST = 32 << 20
"""A line longer than this is none."""


class Follower:
    """Reads what was appended to a record since the last time, in bounded memory.

    Raises `InputError` where there is no record to begin with.
    """

    def __init__(self, directory: Path) -> None:
        self.path = record_path(directory)
        self.course = Course()
        self.missing = False
        """Whether the record was there and is not any more."""
        self._offset = self._size = 0
        self._file: tuple[int, int] | None = None

    @property
    def left(self) -> int:
        """Bytes that are still to be read."""
        return self._size - self._offset

    def glance(self) -> Course | None:
        """The end of a record that takes long to read, to be shown meanwhile."""
        size = self.path.stat().st_size
        if size <= SLICE:
            return None
        course = Course()
        with self.path.open("rb") as file:
            file.seek(size - GLANCE)
            file.readline()
            for raw in file:
                if raw.endswith(b"\n"):
                    course = course.take(raw)
        return course

    def read(self) -> Iterator[Course]:
        """Read to the end; the course after each slice, and before each new phase."""
        try:
            self._look()
            more = True
            while more:
                more = yield from self._slice()
                yield self.course
        except FileNotFoundError:
            self.missing = True
            yield self.course

    def _look(self) -> None:
        """Begin anew where the file is another one, or shorter than what was read of it."""
        found = self.path.stat()
        self.missing, self._size = False, found.st_size
        if self._file != (found.st_dev, found.st_ino) or found.st_size < self._offset:
            self._file, self._offset = (found.st_dev, found.st_ino), 0
            self.course = Course()

    def _slice(self) -> Generator[Course, None, bool]:
        """Whether there is more."""
        until = self._offset + SLICE
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while self._offset < until:
                raw = file.readline(LONGEST)
                if not raw or not _whole(raw):
                    return False
                self._offset += len(raw)
                following = self.course.take(raw)
                if following is not self.course:
                    yield self.course
                    self.course = following
        return True


def _whole(raw: bytes) -> bool:
    """A torn last line is left for later; what is far too long for one is no line."""
    return raw.endswith(b"\n") or len(raw) == LONGEST or parsed(raw) is not None


def record_path(directory: Path) -> Path:
    """The record in a run's directory; raises `InputError` where there is none."""
    if not directory.exists():
        fix = "Name a run's directory, or the URL of an agent or a monitor"
        raise InputError("there is no such folder", file=directory, fix=fix)
    file = directory / RECORD_NAME if directory.is_dir() else directory
    if not file.is_file() or not os.access(file, os.R_OK):
        inner = sorted(path.parent for path in directory.glob(f"*/{RECORD_NAME}"))
        known = f"Did you mean {', '.join(map(str, inner[:NAMED]))}" if inner else WHERE
        raise InputError(f"no {RECORD_NAME} can be read here", file=directory, fix=known)
    return file


NAMED = 3
WHERE = "A run writes it to OUTPUT_DIR/forcegauge when its training begins"
