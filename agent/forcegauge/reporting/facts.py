"""The latest probe in numbers, and the facts of the run: model, settings, versions, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from forcegauge.reporting.plots import swatch, written
from forcegauge.reporting.safe import inline
from forcegauge.reporting.story import Story, Value, field, number

MEANINGS = {
    "chosen": "y+, the preferred answer",
    "rejected": "y−, the answer pushed down",
    "chosen_rephrase": "chosen in other words",
    "rejected_rephrase": "rejected in other words",
    "chosen_offtopic": "form of chosen, other meaning",
    "rejected_offtopic": "form of rejected, other meaning",
    "other_prompt": "chosen of another training prompt",
    "unseen_prompt": "chosen of a prompt never trained on",
    "unrelated": "a human sentence",
    "shuffled": "words of chosen, permuted",
    "random_words": "random words",
    "greedy": "the baseline's own greedy output",
}
HEADS = (
    "log-prob",
    "change",
    "noise",
    "q10 … q90",
    "argmax log-prob",
    "change",
    "argmax mass",
    "entropy",
)
LATEST_ERRORS = 5
LONG_WORD = 32


def latest_section(story: Story) -> str:
    """Every response type at the latest probe: levels, changes, spread over probes."""
    probe = story.last_probe
    if probe is None:
        return ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    rows = "".join(_latest_row(story, kind) for kind in story.types)
    return (
        '<section class="card"><h2>The latest probe in numbers</h2><p class="reading">'
        f"Step {probe['step']}, phase {inline(probe.get('phase'))}. Nats per token, means over "
        "probes (q10 … q90: spread over them); changes are since the phase’s baseline; a change "
        "within its noise is none.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="The latest probe in numbers">'
        f'<table><thead><tr><th scope="col">response type</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _latest_row(story: Story, kind: str) -> str:
    phase, probe = story.phases[-1], story.last_probe
    score = field(probe, "scores", kind) or {}
    cells = (
        written(number(field(score, "logprob_mean", "mean"))),
        written(phase.changes("logprob_mean", kind)[-1], signed=True),
        written(number(field(probe, "noise", kind))),
        " … ".join(written(number(field(score, "logprob_mean", q))) for q in ("q10", "q90")),
        written(number(field(score, "argmax_logprob_mean", "mean"))),
        written(phase.changes("argmax_logprob_mean", kind)[-1], signed=True),
        written(number(field(score, "argmax_mass", "mean")), percent=True),
        written(number(field(score, "entropy", "mean"))),
    )
    meaning = MEANINGS.get(kind, "")
    return (
        f'<tr><th scope="row">{swatch(kind)}{inline(kind)}<small>{meaning}</small></th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def facts_section(story: Story) -> str:
    """Model, probe set, versions, settings, cost and errors."""
    run: Mapping[str, Any] = story.runs[-1] if story.runs else {}
    groups = {
        "Run": _run_facts(story, run),
        "Probe set": _probe_facts(story, run),
        "Cost": _cost_facts(story),
        **_settings(story),
        "Versions": flat(run.get("versions")),
        "Errors": _error_facts(story),
    }
    shown_groups = "".join(
        f"<div><h3>{inline(title)}</h3><dl>{_terms(pairs)}</dl></div>"
        for title, pairs in groups.items()
        if pairs
    )
    return (
        f'<section class="card"><h2>Run facts</h2><div class="facts">{shown_groups}</div></section>'
    )


def _terms(pairs: list[tuple[str, str]]) -> str:
    return "".join(
        f"<dt>{inline(name)}</dt><dd{_size(value)}>{inline(value)}</dd>" for name, value in pairs
    )


def _size(value: str) -> str:
    return ' class="long"' if len(value) > LONG_WORD and " " not in value else ""


def _run_facts(story: Story, run: Mapping[str, Any]) -> list[tuple[str, str]]:
    phases = [
        (
            f"phase {phase.name}",
            f"steps {phase.steps[0]}–{phase.steps[-1]}, probed {len(phase.probes)} times",
        )
        for phase in story.phases
    ]
    resumes = sum(1 for line in story.runs if line.get("resumed_from") is not None)
    return [
        ("model", _text(run.get("model"))),
        *phases,
        ("record", _text(run.get("record_id"))),
        ("started", moment(number(field(story.runs[0], "time")) if story.runs else None)),
        ("last line", moment(story.last_time)),
        ("ended", _text(field(story.end, "reason"))),
        ("resumed", f"{resumes} times" if resumes else "never"),
    ]


def _probe_facts(story: Story, run: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = story.phases[-1].probes[0] if story.phases and story.phases[-1].probes else None
    counts = [
        number(field(first, "scores", kind, "logprob_mean", "n")) or 0.0 for kind in story.types
    ]
    probes, scored = max(counts, default=0.0), number(field(story.last_probe, "probes_scored"))
    part = f"; the last time {scored:.0f} of them" if scored and scored < probes else ""
    return [
        ("hash", _text(run.get("probe_hash"))),
        ("probes", f"{probes:.0f}{part}" if probes else "–"),
        ("response types", str(len(story.types)) if story.types else "–"),
    ]


def _cost_facts(story: Story) -> list[tuple[str, str]]:
    lines = [probe for phase in story.phases for probe in phase.probes]
    found = [number(probe.get("duration_seconds")) for probe in lines]
    seconds = [value for value in found if value is not None]
    if not seconds:
        return []
    facts = [
        (
            "a probe",
            f"{sum(seconds) / len(seconds):.2g} s on average, {max(seconds):.2g} s at most",
        ),
        ("all probes", f"{sum(seconds):.3g} s"),
    ]
    began, ended = number(lines[0].get("time")), number(lines[-1].get("time"))
    if began is not None and ended is not None and ended > began:
        # the first probe ended when its line was written: its cost lies before the span
        facts.append(("share of the run's time", f"{sum(seconds[1:]) / (ended - began):.1%}"))
    return facts


def _error_facts(story: Story) -> list[tuple[str, str]]:
    reasons = Counter(_text(line.get("reason")) for line in story.errors)
    counts = [(reason, f"{count} times") for reason, count in reasons.items()]
    latest = [
        (f"step {_text(line.get('step'))}", _text(line.get("message")))
        for line in story.errors[-LATEST_ERRORS:]
    ]
    return [("errors", f"{len(story.errors)}"), *counts, *latest]


def _settings(story: Story) -> dict[str, list[tuple[str, str]]]:
    """Settings of each phase, as its latest start has them."""
    latest = {line["phase"]: line for line in story.runs}
    return {f"Settings, {phase}": flat(row.get("settings")) for phase, row in latest.items()}


def flat(values: object) -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a text, for people."""
    return list(_pairs(values, "")) if isinstance(values, Mapping) else []


def _pairs(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: object) -> str:
    return "–" if value is None or value == "" else str(value)


def moment(seconds: Value) -> str:
    """Unix seconds as UTC date and time; a dash where no calendar holds them."""
    try:
        return (
            f"{datetime.fromtimestamp(seconds or 0, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else "–"
        )
    except (OverflowError, ValueError, OSError):
        return "–"
