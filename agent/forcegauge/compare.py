"""Several runs side by side: which squeezed, which did not, by how much, and what differed.

Runs are compared over one phase, counted from its start, since every phase has its own baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forcegauge.errors import InputError
from forcegauge.probes import UNTRAINED_NATURAL
from forcegauge.record import Line, read_record
from forcegauge.reporting.facts import flat
from forcegauge.reporting.story import Alarm, Phase, Story, Value, field, number, tell

MOST_RUNS = 16
BY = ("step", "tokens")
RATE = "learning_rate"
SWEPT = (RATE, "beta")
"""Settings that a sweep is most likely about: runs are put in their order first."""
NO_SETTINGS = ("offset", "steps")
"""Facts of a run that no sweep is about."""
LENGTHS_APART = 1.1
SICK = ("collapsed", "diverging", "squeezing")
CALM = ("warming", "learning")


@dataclass(frozen=True)
class Entry:
    """One run in a comparison; ``comparable`` says whether it was measured as the others were."""

    name: str
    folder: Path
    story: Story
    phase: Phase
    settings: Mapping[str, str]
    comparable: bool = True

    @property
    def start(self) -> int:
        """The step at which the phase began."""
        return self.phase.steps[0]

    @property
    def verdict(self) -> str:
        """The verdict at the phase's last probe."""
        return str(field(self.phase.probes[-1], "verdict") or "–")

    @property
    def since(self) -> Value:
        """The step of the phase since which that verdict holds."""
        since = number(field(self._verdict_line, "since_step"))
        return None if since is None else since - self.start

    @property
    def advice(self) -> str:
        """What to do about it, as recorded."""
        return str(field(self._verdict_line, "advice") or "")

    @property
    def _verdict_line(self) -> Line | None:
        wanted = (self.phase.name, self.verdict)
        lines = reversed(self.story.verdicts)
        return next((x for x in lines if (x["phase"], x.get("verdict")) == wanted), None)

    @property
    def calm(self) -> bool:
        """Whether the verdict is one of health."""
        return self.verdict in CALM

    @property
    def alarms_on(self) -> list[Alarm]:
        """Alarms of the phase that never went off."""
        return [alarm for alarm in self._alarms if alarm.off is None]

    @property
    def squeezed_before(self) -> Alarm | None:
        """The last time that the squeezing alarm was on, where the verdict is calm by now."""
        found = [alarm for alarm in self._alarms if alarm.name == "squeezing"]
        return found[-1] if found and self.calm else None

    @property
    def _alarms(self) -> list[Alarm]:
        return [alarm for alarm in self.story.alarms if alarm.phase == self.phase.name]

    def positions(self, by: str) -> list[Value]:
        """Where each probe of the phase stands, in steps or tokens since its start."""
        if by == "step":
            return [float(step - self.start) for step in self.phase.steps]
        seen = [number(probe.get("tokens_seen")) for probe in self.phase.probes]
        start = seen[0] or 0.0
        return [None if value is None else value - start for value in seen]


@dataclass(frozen=True)
class Comparison:
    """Runs in the order of what was swept; ``differing`` are the settings that are not the same
    in all, ``notes`` what keeps the runs from being compared in full."""

    phase: str
    by: str
    entries: tuple[Entry, ...]
    differing: tuple[str, ...]
    swept: tuple[str, ...]
    notes: tuple[str, ...]


def compare(folders: Sequence[str | Path], *, by: str = "step", phase: str = "") -> Comparison:
    """Read the runs and put them side by side.

    ``phase`` is by default the last phase of the first run that all runs have; where they share
    none, it is each one's last. Raises `InputError` for what is no run, and for too few or many.
    """
    paths = [Path(folder) for folder in folders]
    _check(paths)
    stories = [_story(path) for path in paths]
    shared = _shared_phase(stories, phase)
    names = _names(paths, stories)
    rows = zip(names, paths, stories, strict=True)
    entries = [_entry(*row, shared) for row in rows]
    differing = _differing(entries)
    swept = _swept(entries, differing)
    ordered = _comparable(sorted(entries, key=lambda entry: _place(entry, swept)))
    along = by if by == "step" or all(map(_tokens_known, ordered)) else "step"
    notes = tuple(_notes(ordered, shared, by, along))
    return Comparison(shared, along, ordered, differing, swept, notes)


def _check(paths: Sequence[Path]) -> None:
    if len(paths) < 2:
        fix = "Name at least two run directories; for one there is forcegauge report"
        raise InputError("one run is no comparison", fix=fix)
    if len(paths) > MOST_RUNS:
        raise InputError(f"{len(paths)} runs are too many", fix=f"Name {MOST_RUNS} at most")
    twice = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice:
        raise InputError("is named twice", fix="Name every run once", file=twice[0])


def _story(path: Path) -> Story:
    if not path.exists():
        raise InputError("no such run", fix="Name a run's directory", file=path)
    story = tell(read_record(path))
    if not story.phases:
        fix = "Look again after its first probe, or leave it out"
        raise InputError("this run has no probe yet", fix=fix, file=path)
    return story


def _shared_phase(stories: Sequence[Story], wanted: str) -> str:
    """The phase to compare, or nothing where the runs share none."""
    common = [
        phase.name
        for phase in stories[0].phases
        if all(phase.name in [p.name for p in story.phases] for story in stories)
    ]
    if wanted and wanted not in common:
        fix = f"Shared are: {', '.join(common)}" if common else "They share no phase"
        raise InputError(f"not every run has a phase '{wanted}'", field="--phase", fix=fix)
    return wanted or (common[-1] if common else "")


def _names(paths: Sequence[Path], stories: Sequence[Story]) -> list[str]:
    """Run names; where two share one, with as much of their folders as tells them apart."""
    counts = Counter(story.name for story in stories)
    found = [story.name for story in stories]
    for depth in range(1, max(len(path.resolve().parts) for path in paths)):
        if len(set(found)) == len(found):
            break
        found = [
            story.name if counts[story.name] == 1 else "/".join(path.resolve().parts[-depth:])
            for path, story in zip(paths, stories, strict=True)
        ]
    return found


def _entry(name: str, path: Path, story: Story, shared: str) -> Entry:
    phase = next((p for p in story.phases if p.name == shared), story.phases[-1])
    return Entry(name, path, story, phase, _settings(story, phase))


def _settings(story: Story, phase: Phase) -> dict[str, str]:
    """What is known of how a phase was trained, and of the phases before it."""
    latest = {line["phase"]: line for line in story.runs}
    known: dict[str, str] = {}
    for each in story.phases:
        if each.steps[0] >= phase.steps[0] and each.name != phase.name:
            break
        prefix = "" if each.name == phase.name else f"{each.name}: "
        own = _phase_settings(story, each, latest.get(each.name, {}))
        known |= {f"{prefix}{name}": value for name, value in own.items()}
    return known


def _phase_settings(story: Story, phase: Phase, line: Line) -> dict[str, str]:
    settings = line.get("settings")
    told = dict(flat(settings))
    rate = _learning_rate(story, phase.name)
    if rate and RATE not in told:
        told[RATE] = rate
    return {
        "model": str(line.get("model", "–")),
        **told,
        "steps": str(phase.steps[-1] - phase.steps[0]),
    }


def _learning_rate(story: Story, phase: str) -> str:
    """The highest learning rate, read off the forces, which are recorded with and without it."""
    lines = [line for each in story.forces if each.name == phase for line in each.probes]
    pairs = [(number(x.get("force_up_step_norm")), number(x.get("force_up_norm"))) for x in lines]
    rates = [step / norm for step, norm in pairs if step is not None and norm]
    return f"{max(rates):.2g}" if rates else ""


def _differing(entries: Sequence[Entry]) -> tuple[str, ...]:
    names = dict.fromkeys(name for entry in entries for name in entry.settings)
    told = {name: {entry.settings.get(name, "–") for entry in entries} for name in names}
    kept = [name for name in names if len(told[name]) > 1 and name.split(": ")[-1] != "offset"]
    return tuple(sorted(kept, key=lambda name: (name not in SWEPT, kept.index(name))))


def _swept(entries: Sequence[Entry], differing: Sequence[str]) -> tuple[str, ...]:
    """Differing settings that are a number in every run, but for what only follows from others."""
    return tuple(
        name
        for name in differing
        if name.split(": ")[-1] not in NO_SETTINGS
        and all(_as_number(entry.settings.get(name)) is not None for entry in entries)
    )


def _as_number(text: str | None) -> Value:
    try:
        return number(float(text or ""))
    except ValueError:
        return None


def _place(entry: Entry, swept: Sequence[str]) -> tuple[float, ...]:
    return tuple(_as_number(entry.settings.get(name)) or 0.0 for name in swept)


def _measured(entry: Entry) -> tuple[Any, ...]:
    """What must be the same for numbers to mean the same."""
    lines = [line for line in entry.story.runs if line["phase"] == entry.phase.name]
    line = lines[-1] if lines else {}
    names = ("max_prompt_tokens", "max_response_tokens", "append_eos")
    return (line.get("probe_hash"), *(field(line, "settings", name) for name in names))


def _comparable(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The largest group that was measured alike; the numbers of the others cannot be compared."""
    measured = [_measured(entry) for entry in entries]
    most, count = Counter(measured).most_common(1)[0]
    alike = [count > 1 and each == most for each in measured]
    return tuple(replace(e, comparable=c) for e, c in zip(entries, alike, strict=True))


def _tokens_known(entry: Entry) -> bool:
    return None not in entry.positions("tokens")


def _notes(entries: Sequence[Entry], phase: str, asked: str, along: str) -> Iterator[str]:
    if not phase:
        each = ", ".join(f"{entry.name}: {entry.phase.name}" for entry in entries)
        yield f"The runs share no phase: the last one of each is compared ({each})."
    if asked != along:
        without = ", ".join(entry.name for entry in entries if not _tokens_known(entry))
        yield f"Tokens seen are not in the record of {without}: aligned by step."
    if any(entry.start for entry in entries):
        began = ", ".join(f"{entry.name} at {entry.start}" for entry in entries)
        yield f"Steps are counted from the start of the phase, which began in {began}."
    yield from _measured_apart(entries)
    ends = [entry.phase.steps[-1] - entry.start for entry in entries]
    if max(ends) > LENGTHS_APART * max(1, min(ends)):
        yield (
            f"Each run is told as of its own last probe: they end between step {min(ends)} and "
            f"{max(ends)}."
        )
    if any(map(_rate_read, entries)):
        yield "A learning rate that no setting tells is the highest that the recorded forces show."
    models = {entry.settings.get("model") for entry in entries}
    if len(models) > 1:
        yield "The models differ: nats per token depend on the tokenizer."


def _rate_read(entry: Entry) -> bool:
    lines = [line for line in entry.story.runs if line["phase"] == entry.phase.name]
    told = field(lines[-1], "settings") if lines else {}
    return RATE in entry.settings and RATE not in dict(flat(told))


def _measured_apart(entries: Sequence[Entry]) -> Iterator[str]:
    alone = [entry.name for entry in entries if not entry.comparable]
    if len(alone) == len(entries):
        yield "Every run was scored on other probes or limits: only verdicts can be compared."
    elif alone:
        yield (
            f"Scored on another probe set or with other limits than the rest: {', '.join(alone)}. "
            "The verdict stands, the numbers cannot be compared and are left out."
        )


def untrained_argmax(phase: Phase) -> list[Value]:
    """Change of the argmax log-prob, mean over untrained natural types, per probe."""
    columns = [phase.changes("argmax_logprob_mean", kind) for kind in UNTRAINED_NATURAL]
    rows = zip(*columns, strict=True)
    return [_mean([value for value in row if value is not None]) for row in rows]


def _mean(values: Sequence[float]) -> Value:
    return sum(values) / len(values) if values else None
