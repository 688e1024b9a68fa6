"""What a record tells of its latest phase, taken line by line, in bounded memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping

from forcegauge.errors import InputError
from forcegauge.record import SCHEMA, Line
from forcegauge.reporting.story import Story, field, tell

RECENT = 64
"""Probes that are all kept: the last ones."""
OLDER = 512
"""Probes before them that are kept at most, evenly spread."""
RARE = 2048
"""Lines of other kinds that are kept at most: the last ones."""

JUDGED = ("alarm", "verdict")
"""Rare kinds that a resume takes back where they are of steps that it trains again."""

COMMON: Mapping[str, type | tuple[type, ...]] = {
    "schema": int,
    "kind": str,
    "phase": str,
    "step": int,
    "time": (int, float),
}
HEAD = 40
"""Bytes of a line in which its kind stands."""
SHOWN = "logprob_mean"
"""The statistic of scores that is shown."""


class Lines:
    """Lines of one kind, a bounded number of them; only those that are kept are parsed."""

    def __init__(self) -> None:
        self._older: list[Line] = []
        self._recent: deque[bytes | Line] = deque()
        self._stride = 1
        self._aged = 0
        self.unreadable = 0

    def __len__(self) -> int:
        """How many there were, kept or not."""
        return self._aged + len(self._recent)

    def add(self, raw: bytes) -> None:
        """Take one line."""
        self._recent.append(raw)
        if len(self._recent) > RECENT:
            self._age(self._recent.popleft())

    def lines(self) -> list[Line]:
        """Those that are kept, in the order of writing."""
        recent = [line for each in self._recent if (line := self._slim(each)) is not None]
        self._recent = deque(recent)
        return [*self._older, *recent]

    def cut(self, step: int) -> None:
        """Leave out what is beyond a step."""
        kept = [line for line in self.lines() if line["step"] <= step]
        self._older, self._recent = kept[:-RECENT], deque(kept[-RECENT:])
        self._aged = self._stride * len(self._older)

    def _age(self, line: bytes | Line) -> None:
        if self._aged % self._stride == 0 and (found := self._slim(line)) is not None:
            self._older.append(found)
        self._aged += 1
        if len(self._older) > OLDER:
            self._older, self._stride = self._older[::2], 2 * self._stride

    def _slim(self, line: bytes | Line) -> Line | None:
        if isinstance(line, dict):
            return line
        found = parsed(line)
        self.unreadable += found is None
        return found and slim(found)


class Course:
    """The latest phase of a record so far, and what is rare in the whole of it."""

    def __init__(self, rare: Iterable[Line] = (), run: Line | None = None) -> None:
        self.probes, self.forces = Lines(), Lines()
        self.rare: deque[Line] = deque(rare, maxlen=RARE)
        self.run = run
        """The line with which this phase was opened last: settings, model."""
        self.end: Line | None = None
        """The record's last line, where that says that the run ended."""
        self._unreadable = 0

    @property
    def unreadable(self) -> int:
        """How many lines of this phase are no lines of a record, as far as they were parsed."""
        return self._unreadable + self.probes.unreadable + self.forces.unreadable

    def take(self, raw: bytes) -> Course:
        """Take one whole line; another course where a new phase begins with it.

        Raises `InputError` for a record of a newer forcegauge.
        """
        self.end = None
        many = {"probe": self.probes, "forces": self.forces}
        for kind, lines in many.items():
            if b'"kind":"%s"' % kind.encode() in raw[:HEAD]:
                lines.add(raw)
                return self
        line = parsed(raw)
        if line is None:
            self._unreadable += bool(raw.strip())
            return self
        if line["kind"] in many:
            # written by somebody else than the agent: with spaces, or in another order
            many[line["kind"]].add(raw)
            return self
        return self._take(line)

    def story(self) -> Story:
        """All that is kept, as the report reads it."""
        end = [self.end] if self.end else []
        return tell([*self.rare, *self.probes.lines(), *self.forces.lines(), *end])

    def _take(self, line: Line) -> Course:
        if line["kind"] == "end":
            self.end = line
        elif line["kind"] == "run":
            return self._open(line)
        else:
            self.rare.append(line)
        return self

    def _open(self, line: Line) -> Course:
        if self.run is not None and self.run["phase"] != line["phase"]:
            return Course([*self.rare, line], line)
        self.run = line
        if isinstance(step := line.get("resumed_from"), int):
            self.probes.cut(step)
            self.forces.cut(step)
            kept = [row for row in self.rare if row["kind"] not in JUDGED or row["step"] <= step]
            self.rare = deque(kept, maxlen=RARE)
        self.rare.append(line)
        return self


def parsed(raw: bytes) -> Line | None:
    """A line of a record, None for anything else.

    Raises `InputError` for a record of a newer forcegauge.
    """
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(
        isinstance(line.get(name), kind) for name, kind in COMMON.items()
    ):
        return None
    if line["schema"] > SCHEMA:
        problem = f"the record is of a newer forcegauge (schema {line['schema']})"
        raise InputError(problem, fix="Upgrade forcegauge")
    return line


def slim(line: Line) -> Line:
    """A line without what is not shown: of scores, the mean log-probs stay."""
    if line["kind"] != "probe":
        return line
    means = {name: field(line, "scores", name, SHOWN, "mean") for name in line.get("scores") or ()}
    return {**line, "scores": {name: {SHOWN: {"mean": mean}} for name, mean in means.items()}}
