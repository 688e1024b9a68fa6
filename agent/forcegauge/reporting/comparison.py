"""Several runs on one self-contained page: outcomes, what differed, one panel per signal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from forcegauge.compare import SICK, Comparison, Entry
from forcegauge.compare_table import (
    COLUMNS,
    MEASURES,
    Measure,
    by_verdict,
    cells,
    heads,
    said,
    settings_rows,
)
from forcegauge.reporting.assets import asset, packed_plotly
from forcegauge.reporting.cards import figure_card, toggle
from forcegauge.reporting.figures import Figure, Series, limit_of
from forcegauge.reporting.headline import GLYPHS
from forcegauge.reporting.plots import limit_label, limit_line, line_trace, swatch, written
from forcegauge.reporting.safe import inline, script_json, shown
from forcegauge.reporting.story import Value
from forcegauge.reporting.timeline import Scale, verdict_bars
from forcegauge.textfiles import write_whole

PLOTTED_PROBES = 400
TABLED_PROBES = 40
LABELLED_RUNS = 6
"""Most runs whose names stand at their lines; of more the legend tells."""

Points = dict[float, Value]


def write_comparison(comparison: Comparison, output: str | Path) -> Path:
    """Write the page and return its path; raises as `write_whole` does."""
    target = Path(output)
    write_whole(target, render(comparison))
    return target


def render(comparison: Comparison) -> str:
    """The page as HTML."""
    drawn = list(_figures(comparison, PLOTTED_PROBES))
    tabled = list(_figures(comparison, TABLED_PROBES))
    title = " · ".join(entry.name for entry in comparison.entries)
    body = (
        _headline(comparison),
        _outcomes(comparison),
        _settings(comparison),
        _timeline(comparison),
        _legend(comparison) if drawn else "",
        _cards(comparison, drawn, tabled),
    )
    return Template(asset("page.html")).substitute(
        title=f"{shown(title)} · forcegauge comparison",
        run=f"{len(comparison.entries)} runs",
        standing=f"phase {shown(comparison.phase or 'of each run')} · by {comparison.by}",
        body="\n".join(part for part in body if part),
        figures=script_json([_spec(comparison, *each) for each in drawn]),
        details="",
        plotly=packed_plotly() if drawn else "",
        style=asset("page.css"),
        script=asset("page.js"),
        source="records of the runs",
        version=metadata.version("forcegauge"),
    )


def role(comparison: Comparison, entry: Entry) -> str:
    """The role of a run, which has its colour, dash and marker, the same in every figure."""
    return f"run-{comparison.entries.index(entry)}"


def _headline(comparison: Comparison) -> str:
    first, *rest = said(comparison)
    more = "".join(f"<p>{inline(text)}</p>" for text in rest)
    notes = "".join(f'<p class="quiet">{inline(note)}</p>' for note in comparison.notes)
    return (
        '<section class="card"><p class="eyebrow">At the last probe of each run</p>'
        f'<h1 class="said">{inline(first)}</h1>{more}{_advice(comparison)}{notes}</section>'
    )


def _advice(comparison: Comparison) -> str:
    """What the records say to do about each sick verdict."""
    return "".join(
        f"<p><b>Where it is {inline(verdict)}:</b> {inline(found[0].advice)}</p>"
        for verdict, found in by_verdict(comparison.entries).items()
        if verdict in SICK and found[0].advice
    )


def _outcomes(comparison: Comparison) -> str:
    titles = {measure.head: measure.reading for measure in COLUMNS}
    columns = "".join(
        f'<th scope="col"{_hint(titles.get(head, ""))}>{inline(head)}</th>'
        for head in heads(comparison)
    )
    rows = "".join(_outcome_row(comparison, entry) for entry in comparison.entries)
    meanings = "".join(f"<dt>{m.head}</dt><dd>{m.title}: {m.reading}</dd>" for m in COLUMNS)
    return (
        '<section class="card"><h2>Outcomes</h2><p class="reading">Changes since the phase began, '
        "in nats per token, means over probes.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Outcomes">'
        f'<table class="outcomes"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<details class="probe"><summary>What the columns mean</summary><dl>{meanings}</dl>'
        "</details></section>"
    )


def _hint(text: str) -> str:
    return f' title="{text}"' if text else ""


def _outcome_row(comparison: Comparison, entry: Entry) -> str:
    name, verdict, *texts = cells(comparison, entry)
    known = entry.verdict if entry.verdict in GLYPHS else "warming"
    badge = f'<b class="badge">{GLYPHS[known]} {inline(verdict)}</b>'
    data = "".join(f"<td>{inline(text)}</td>" for text in texts)
    line = swatch(role(comparison, entry))
    return (
        f'<tr><th scope="row">{line}{inline(name)}</th>'
        f'<td class="v-{known}">{badge}</td>{data}</tr>'
    )


def _settings(comparison: Comparison) -> str:
    rows = settings_rows(comparison)
    if not rows:
        return (
            '<section class="card"><h2>What differed</h2><p class="quiet">No recorded setting: '
            "the runs may differ in data, seed or what the record does not hold.</p></section>"
        )
    names, *runs = zip(*rows, strict=True)
    columns = "".join(f'<th scope="col">{inline(name)}</th>' for name in ("run", *names[1:]))
    lines = "".join(
        f'<tr><th scope="row">{swatch(role(comparison, entry))}{inline(name)}</th>'
        + "".join(f"<td>{inline(text)}</td>" for text in texts)
        + "</tr>"
        for entry, (name, *texts) in zip(comparison.entries, runs, strict=True)
    )
    return (
        '<section class="card"><h2>What differed</h2><div class="scroll" tabindex="0" '
        'role="region" aria-label="What differed"><table class="settings">'
        f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _timeline(comparison: Comparison) -> str:
    """The verdict of every run over the steps of the phase."""
    longest = max(entry.phase.steps[-1] - entry.start for entry in comparison.entries)
    if not longest:
        return ""
    scale = Scale(0, longest)
    lanes = "".join(
        f'<div class="lane"><span class="what">{inline(entry.name)}</span>'
        f"<div>{verdict_bars(entry.phase, scale, entry.start)}{_dated(entry, scale)}</div></div>"
        for entry in comparison.entries
    )
    return (
        '<section class="card"><h2>When it happened</h2><p class="reading">The verdict at each '
        "probe, by step of the phase. Hatched: from where a drift began, as it was dated later.</p>"
        f'<div class="timeline">{lanes}{scale.ticks()}</div>'
        "</section>"
    )


def _dated(entry: Entry, scale: Scale) -> str:
    """From where the last verdict's drift began to where it was said."""
    said_at = [step for step, verdict in _verdicts(entry) if verdict != entry.verdict]
    if entry.verdict not in SICK or entry.since is None or not said_at:
        return ""
    later = [step for step, _ in _verdicts(entry) if step > said_at[-1]]
    return scale.bar(entry.since, later[0], "building dated", "") if later[0] > entry.since else ""


def _verdicts(entry: Entry) -> list[tuple[int, str]]:
    return [(p["step"] - entry.start, str(p.get("verdict"))) for p in entry.phase.probes]


def _legend(comparison: Comparison) -> str:
    items = "".join(
        f"<li>{toggle(name, swatch(name) + inline(entry.name))}</li>"
        for entry in comparison.entries
        if entry.comparable
        for name in [role(comparison, entry)]
    )
    return f'<ul class="legend runs" aria-label="Runs, on or off">{items}</ul>'


def _figures(comparison: Comparison, most: int) -> Iterator[tuple[Figure, list[Points]]]:
    """A figure per measure with the points of every run; none where no run has numbers."""
    for measure in MEASURES:
        found = [_points(comparison, entry, measure, most) for entry in comparison.entries]
        series = tuple(
            Series(entry.name, role(comparison, entry), (tuple(points.values()),))
            for entry, points in zip(comparison.entries, found, strict=True)
            if any(value is not None for value in points.values())
        )
        if series and any(len(points) > 1 for points in found):
            yield _figure(comparison, measure, series), found


def _figure(comparison: Comparison, measure: Measure, series: tuple[Series, ...]) -> Figure:
    unit = "share" if measure.percent else "nats per token"
    limit = limit_of(comparison.entries[0].story, *measure.limit) if measure.limit[0] else None
    reading = measure.reading
    wide = measure is MEASURES[0]
    return Figure(
        measure.key, measure.title, reading, unit, (), series, wide, toggles=True, limit=limit
    )


def _points(comparison: Comparison, entry: Entry, measure: Measure, most: int) -> Points:
    """Place on the axis -> value, thinned."""
    if not entry.comparable:
        return {}
    whole = dict(
        zip(entry.phase.steps, zip(*_course(comparison, entry, measure), strict=True), strict=True)
    )
    kept = [whole[step] for step in entry.phase.thinned(most).steps]
    return {place: value for place, value in kept if place is not None}


def _course(
    comparison: Comparison, entry: Entry, measure: Measure
) -> tuple[list[Value], list[Value]]:
    return entry.positions(comparison.by), measure.points(entry.phase)


def _spec(comparison: Comparison, figure: Figure, points: Sequence[Points]) -> dict[str, Any]:
    roles = [role(comparison, entry) for entry in comparison.entries]
    places = [place for each in points for place in each]
    low, high = min(places), max(places)
    pad = (high - low) * 0.015 or 0.5
    return {
        "key": figure.key,
        "wide": figure.wide,
        "stacked": False,
        "clip": False,
        "toggles": True,
        "crowded": len(figure.series) > LABELLED_RUNS,
        "limit": figure.limit,
        "percent": figure.percent,
        "alarms": False,
        "data": [
            line_trace(figure, each, list(found), list(found.values()))
            for each in figure.series
            for found in [points[roles.index(each.role)]]
        ],
        "layout": {
            "shapes": limit_line(figure),
            "annotations": limit_label(figure),
            "xaxis": {"title": {"text": comparison.by}, "range": [low - pad, high + pad]},
            "yaxis": {"tickformat": ".0%" if figure.percent else ""},
        },
    }


def _cards(
    comparison: Comparison,
    drawn: Sequence[tuple[Figure, list[Points]]],
    tabled: Sequence[tuple[Figure, list[Points]]],
) -> str:
    cards = "".join(
        figure_card(figure, _table(comparison, figure, rows), "", legend=False)
        for (figure, _), (_, rows) in zip(drawn, tabled, strict=True)
    )
    return f'<div class="grid">{cards}</div>' if cards else ""


def _table(comparison: Comparison, figure: Figure, points: Sequence[Points]) -> str:
    """A row per place on the axis, a column per run."""
    names = "".join(f'<th scope="col">{inline(e.name)}</th>' for e in comparison.entries)
    rows = "".join(
        f'<tr><th scope="row">{place:g}</th>'
        + "".join(f"<td>{written(each.get(place), figure.percent)}</td>" for each in points)
        + "</tr>"
        for place in sorted({place for each in points for place in each})
    )
    return (
        f'<table><thead><tr><th scope="col">{comparison.by}</th>{names}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
