"""A run's record, put in the order in which it is told: phases, verdicts, alarms, outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forcegauge.probes import RESPONSE_TYPES
from forcegauge.record import Line, probes_by_phase

Value = float | None
"""A number, or None where it is absent or not finite."""


def number(value: object) -> Value:
    """The value when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def field(line: object, *path: str) -> Any:
    """What stands at a path of keys, or None."""
    for key in path:
        line = line.get(key) if isinstance(line, Mapping) else None
    return line


@dataclass(frozen=True)
class Phase:
    """The lines of one phase by step; the first probe is the phase's baseline."""

    name: str
    probes: tuple[Line, ...]

    @property
    def steps(self) -> list[int]:
        """Optimizer steps, rising."""
        return [probe["step"] for probe in self.probes]

    def levels(self, statistic: str, response_type: str) -> list[Value]:
        """Mean over probes of one statistic of one response type, per probe line."""
        path = ("scores", response_type, statistic, "mean")
        return [number(field(probe, *path)) for probe in self.probes]

    def changes(self, statistic: str, response_type: str) -> list[Value]:
        """`levels` minus the baseline's."""
        levels = self.levels(statistic, response_type)
        start = levels[0] if levels else None
        return [None if x is None or start is None else x - start for x in levels]

    def signal(self, name: str) -> list[Value]:
        """One signal per probe line."""
        return [number(field(probe, "signals", name)) for probe in self.probes]

    def force(self, name: str) -> list[Value]:
        """One force value per line, such as ``force_up_norm``."""
        return [number(line.get(name)) for line in self.probes]

    def thinned(self, most: int) -> Phase:
        """At most about ``most`` probes, evenly spread, with the first and the last."""
        stride = math.ceil(max(1, len(self.probes) - 1) / max(1, most - 1))
        kept = self.probes[:-1:stride] + self.probes[-1:]
        return Phase(self.name, kept)


@dataclass(frozen=True)
class Alarm:
    """An alarm from the probe that switched it on to the one that switched it off (or None)."""

    name: str
    phase: str
    on: int
    off: int | None
    line: Line


@dataclass(frozen=True)
class Story:
    """Everything that a record tells about its run."""

    name: str
    runs: tuple[Line, ...]
    phases: tuple[Phase, ...]
    forces: tuple[Phase, ...]
    alarms: tuple[Alarm, ...]
    verdicts: tuple[Line, ...]
    checkpoints: tuple[Line, ...]
    snapshots: tuple[Line, ...]
    errors: tuple[Line, ...]
    end: Line | None
    last_time: Value

    @property
    def last_probe(self) -> Line | None:
        """The latest probe line."""
        return self.phases[-1].probes[-1] if self.phases else None

    @property
    def alarms_on(self) -> list[Alarm]:
        """Alarms of the latest phase that have not gone off."""
        phase = field(self.last_probe, "phase")
        return [alarm for alarm in self.alarms if alarm.off is None and alarm.phase == phase]

    @property
    def has_course(self) -> bool:
        """Whether there are two steps to draw a line between."""
        return len({step for phase in self.phases for step in phase.steps}) > 1

    @property
    def types(self) -> list[str]:
        """Response types that were scored, in reading order; types unknown here come last."""
        found = {name for phase in self.phases for p in phase.probes for name in _scored(p)}
        known = [name for name in RESPONSE_TYPES if name in found]
        return known + sorted(found - set(known))

    @property
    def verdict(self) -> str | None:
        """The verdict so far."""
        said = field(self.last_probe, "verdict") or field(self.verdict_line, "verdict")
        return None if said is None else str(said)

    @property
    def verdict_line(self) -> Line | None:
        """The record's line on the verdict so far: since which step, evidence, advice."""
        said = field(self.last_probe, "verdict")
        lines = [line for line in self.verdicts if said in (None, line.get("verdict"))]
        phase = field(self.last_probe, "phase")
        return next((line for line in reversed(lines) if line["phase"] == phase), None)


def tell(lines: Iterable[Line]) -> Story:
    """The story of a record's lines, in the order in which they were written."""
    by_kind: dict[str, list[Line]] = {}
    last: Line = {}
    for last in lines:
        by_kind.setdefault(last["kind"], []).append(last)
    runs, probes = by_kind.get("run", []), by_kind.get("probe", [])
    return Story(
        name=str(last.get("run", "")),
        runs=tuple(runs),
        phases=tuple(Phase(name, tuple(rows)) for name, rows in probes_by_phase(probes).items()),
        forces=_forces(by_kind.get("forces", [])),
        alarms=_alarms(by_kind.get("alarm", [])),
        verdicts=tuple(by_kind.get("verdict", [])),
        checkpoints=_checkpoints(by_kind.get("checkpoint", [])),
        snapshots=tuple({line.get("id"): line for line in by_kind.get("snapshot", [])}.values()),
        errors=tuple(by_kind.get("error", [])),
        end=last if last.get("kind") == "end" else None,
        last_time=number(last.get("time")),
    )


def _checkpoints(lines: Sequence[Line]) -> tuple[Line, ...]:
    """By rising step; a path that was written again is what was written last."""
    latest = {str(line.get("path")): line for line in lines}
    return tuple(sorted(latest.values(), key=lambda line: line["step"]))


def _forces(lines: Sequence[Line]) -> tuple[Phase, ...]:
    phases: dict[str, dict[int, Line]] = {}
    for line in lines:
        phases.setdefault(line["phase"], {})[line["step"]] = line
    return tuple(
        Phase(name, tuple(rows[step] for step in sorted(rows))) for name, rows in phases.items()
    )


def _alarms(lines: Sequence[Line]) -> tuple[Alarm, ...]:
    episodes: list[Alarm] = []
    for line in lines:
        name, phase, step = str(line.get("alarm")), line["phase"], line["step"]
        open_ones = [e for e in episodes if (e.name, e.phase, e.off) == (name, phase, None)]
        if line.get("on") and not open_ones:
            episodes.append(Alarm(name, phase, step, None, line))
        elif not line.get("on") and open_ones:
            found = open_ones[-1]
            episodes[episodes.index(found)] = Alarm(name, phase, found.on, step, found.line)
    return tuple(sorted(episodes, key=lambda episode: episode.on))


def _scored(probe: Line) -> Mapping[str, Any]:
    scores = probe.get("scores")
    return scores if isinstance(scores, Mapping) else {}
