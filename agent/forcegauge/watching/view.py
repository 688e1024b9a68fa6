"""What a watched run looks like now: all that a screen or a line shows of it, and from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from forcegauge.detectors import AlarmState, Detector, Judgement
from forcegauge.errors import InputError
from forcegauge.phase import alarms_with, pushes_down
from forcegauge.record import Line
from forcegauge.reporting import story as told
from forcegauge.reporting.checkpoints import checkpoint_words
from forcegauge.reporting.story import Story, Value
from forcegauge.schedule import Schedule
from forcegauge.watching.course import SHOWN, Course
from forcegauge.watching.words import probe_line

FORCES = ("force_up_norm", "force_down_norm", "valley_force_ratio")


@dataclass(frozen=True)
class Series:
    """Values by rising step, None where absent."""

    steps: Sequence[int] = ()
    values: Sequence[Value] = ()

    @property
    def last(self) -> Value:
        """The latest value."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class View:
    """A run as it is now; None and missing keys are what nobody tells.

    ``step`` is the last probe's, ``train_step`` the training's. ``changes`` are of log-probs in
    nats per token by response type. Times are in Unix seconds, ``seconds`` what the last probe
    took, ``scored`` how many probes it scored of how many, ``overhead`` the share of the training
    time that probes take.
    """

    name: str
    phase: str = ""
    model: str = ""
    step: int | None = None
    train_step: int | None = None
    count: int | None = None
    verdict: str = ""
    since: int | None = None
    evidence: str = ""
    advice: str = ""
    checkpoint: str = ""
    changes: Mapping[str, Series] = field(default_factory=dict)
    signals: Mapping[str, Series] = field(default_factory=dict)
    alarms: Sequence[AlarmState] = ()
    seconds: float | None = None
    scored: tuple[int, int] | None = None
    overhead: float | None = None
    next_step: int | None = None
    heard: float | None = None
    spacing: float | None = None
    """Seconds between the last two probes."""
    ended: str | None = None
    notes: Sequence[str] = ()
    lines: Sequence[tuple[int, str]] = ()
    """Step and short line of each probe that is known."""


def record_view(course: Course, notes: Sequence[str] = ()) -> View:
    """The latest phase of a record."""
    story, run = course.story(), course.run
    if course.unreadable:
        notes = [*notes, f"Damaged lines in the record, left out: {course.unreadable}."]
    if not story.phases:
        return View(
            name=story.name or str(told.field(run, "run") or ""),
            phase=str(told.field(run, "phase") or ""),
            model=str(told.field(run, "model") or ""),
            notes=notes,
            ended=_ended(course),
        )
    phase = story.phases[-1]
    judged, last = judgements(phase.probes, run), phase.probes[-1]
    since = told.field(story.verdict_line, "since_step")
    evidence, advice = _words(story, judged[-1] if judged else None)
    return View(
        name=story.name,
        phase=phase.name,
        model=str(told.field(run, "model") or ""),
        step=last["step"],
        count=len(course.probes),
        verdict=story.verdict or "",
        since=since if isinstance(since, int) else None,
        evidence=evidence,
        advice=advice,
        checkpoint=checkpoint_words(story),
        changes={name: Series(phase.steps, phase.changes(SHOWN, name)) for name in story.types},
        signals=_signals(story),
        alarms=tuple(judged[-1].alarms.values()) if judged else (),
        seconds=told.number(last.get("duration_seconds")),
        scored=_scored(phase.probes),
        overhead=_overhead(course, phase.probes),
        next_step=_next_step(phase.probes, run),
        heard=story.last_time,
        spacing=_spacing(phase.probes),
        ended=_ended(course),
        notes=notes,
        lines=_lines(phase.probes, judged),
    )


def judgements(probes: Sequence[Line], run: Line | None) -> list[Judgement]:
    """What the agent's own detector says after each probe; nothing where settings are unknown.

    Of a long run it sees only the probes that are kept.
    """
    settings = told.field(run, "settings")
    if not isinstance(settings, Mapping):
        return []
    try:
        alarms = alarms_with(settings.get("thresholds") or {})
    except (InputError, AttributeError, TypeError):
        return []
    baseline, *later = probes
    detector = Detector(baseline["step"], pushes_down(settings.get("loss")), alarms)
    return [
        detector.idle(),
        *(detector.update(p["step"], numbers(p, "signals"), numbers(p, "noise")) for p in later),
    ]


def numbers(line: Line, name: str) -> dict[str, float]:
    """The finite numbers of a mapping in a line."""
    found = line.get(name)
    rows = found.items() if isinstance(found, Mapping) else ()
    return {key: value for key, each in rows if (value := told.number(each)) is not None}


def _words(story: Story, judged: Judgement | None) -> tuple[str, str]:
    """Evidence and advice: as recorded, or with the latest numbers where the detector comes to
    the same verdict."""
    if judged is not None and judged.verdict == story.verdict != "collapsed":
        return judged.evidence, judged.advice
    said = (told.field(story.verdict_line, name) for name in ("evidence", "advice"))
    evidence, advice = (str(text or "") for text in said)
    return evidence, advice


def _signals(story: Story) -> dict[str, Series]:
    phase = story.phases[-1]
    names = {name for probe in phase.probes for name in numbers(probe, "signals")}
    found = {name: Series(phase.steps, phase.signal(name)) for name in names}
    forces = [each for each in story.forces if each.name == phase.name]
    for name in FORCES if forces else ():
        found[name] = Series(forces[-1].steps, forces[-1].force(name))
    return {**found, **argmax_gain(found)}


def argmax_gain(signals: Mapping[str, Series]) -> dict[str, Series]:
    """How much the argmax gained where untrained answers stand: the squeeze index is the
    difference of the two changes."""
    if not {"squeeze_nats", "untrained_change_nats"} <= signals.keys():
        return {}
    squeeze, untrained = signals["squeeze_nats"], signals["untrained_change_nats"]
    pairs = zip(squeeze.values, untrained.values, strict=True)
    gains = [None if s is None or u is None else s + u for s, u in pairs]
    return {"argmax_gain_nats": Series(squeeze.steps, gains)}


def _overhead(course: Course, probes: Sequence[Line]) -> float | None:
    """About: since this process opened the record; of a long run from the probes that are kept."""
    began = told.field(course.run, "time")
    since = [p for p in probes if began is not None and p["time"] >= began]
    took = [told.number(p.get("duration_seconds")) or 0.0 for p in since]
    elapsed = since[-1]["time"] - began if since else 0.0
    many = len(course.probes) / len(probes)
    return min(1.0, many * sum(took) / elapsed) if elapsed > 0 else None


def _scored(probes: Sequence[Line]) -> tuple[int, int] | None:
    counts = [told.number(probe.get("probes_scored")) for probe in (probes[-1], probes[0])]
    return (int(counts[0]), int(counts[1])) if counts[0] and counts[1] else None


def _next_step(probes: Sequence[Line], run: Line | None) -> int | None:
    """As the agent's own schedule has it; about, where a budget spaces the probes."""
    settings, last, base = told.field(run, "settings"), probes[-1], probes[0]["step"]
    every = told.field(settings, "every")
    if not isinstance(every, int) or every < 1:
        return None
    budget, took = told.number(settings.get("budget")), told.number(last.get("duration_seconds"))
    steps = last["step"] - base
    spent = sum(told.number(p.get("duration_seconds")) or 0.0 for p in probes[1:])
    trained = last["time"] - probes[0]["time"] - spent
    per_step = max(0.0, trained / steps) if steps else 0.0
    return int(base + Schedule(every, budget).next(steps, took or 0.0, per_step))


def _spacing(probes: Sequence[Line]) -> float | None:
    times = [probe["time"] for probe in probes[-2:]]
    return float(times[-1] - times[0]) if len(times) > 1 else None


def _ended(course: Course) -> str | None:
    return None if course.end is None else str(course.end.get("reason"))


def _lines(probes: Sequence[Line], judged: Sequence[Judgement]) -> list[tuple[int, str]]:
    pairs = zip_longest(probes, judged)
    return [(probe["step"], _line(probe, each)) for probe, each in pairs]


def _line(probe: Line, judged: Judgement | None) -> str:
    signals, verdict = numbers(probe, "signals"), str(probe.get("verdict"))
    seconds, step = told.number(probe.get("duration_seconds")), probe["step"]
    if judged is None or judged.verdict != verdict:
        return probe_line(step, verdict, None, signals, seconds)
    on = [each.name for each in judged.alarms.values() if each.on]
    return probe_line(step, verdict, judged.since_step, signals, seconds, on)
