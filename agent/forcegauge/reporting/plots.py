"""Figures as plotly takes them, and as tables. The page's script adds colours, labels and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from forcegauge.reporting.figures import Figure, Series
from forcegauge.reporting.safe import inline, plot_text, shown
from forcegauge.reporting.story import Alarm, Story, Value

Spec = dict[str, Any]

MERGED_SHARE = 0.04
"""Alarm marks nearer than this share of the step axis share one badge."""


class Style(NamedTuple):
    """How a line looks besides its colour; both tell lines apart without any."""

    dash: str
    marker: str
    width: float = 2


RUN_MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "x", "cross")
RUN_STYLES = [(dash, marker) for dash in ("solid", "dash") for marker in RUN_MARKERS]
"""Runs of a comparison: eight colours with a marker each, then the same dashed."""

STYLES = {
    "chosen": Style("solid", "circle", 3),
    "rejected": Style("solid", "square", 3),
    "chosen_rephrase": Style("dash", "circle-open"),
    "rejected_rephrase": Style("dash", "square-open"),
    "chosen_offtopic": Style("dot", "diamond"),
    "rejected_offtopic": Style("dot", "diamond-open"),
    "other_prompt": Style("solid", "triangle-up"),
    "unseen_prompt": Style("solid", "triangle-down"),
    "unrelated": Style("dashdot", "star"),
    "shuffled": Style("dash", "x"),
    "random_words": Style("dot", "cross"),
    "greedy": Style("dashdot", "hexagon"),
    "one": Style("solid", "circle", 2.5),
    "two": Style("dash", "square"),
    "three": Style("dot", "diamond"),
    "rest": Style("dot", "cross"),
    **{f"run-{i}": Style(*look) for i, look in enumerate(RUN_STYLES)},
}
PLAIN = Style("solid", "circle-open")
PATTERNS = {"one": "", "two": "/", "rest": "."}

DASHES = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}
MARKERS = {
    "circle": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "square": "M-3-3h6v6h-6z",
    "diamond": "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "triangle-up": "M0-4L4 3h-8z",
    "triangle-down": "M0 4L4-3h-8z",
    "star": "M0-5L1.4-1.6L5-1.4L2.2.9L3.1 4.4L0 2.4L-3.1 4.4L-2.2.9L-5-1.4L-1.4-1.6z",
    "x": "M-3-4L0-1L3-4L4-3L1 0L4 3L3 4L0 1L-3 4L-4 3L-1 0L-4-3z",
    "cross": "M-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "hexagon": "M0-4L3.5-2v4L0 4L-3.5 2v-4z",
}


def plotly_spec(figure: Figure, story: Story) -> Spec:
    """Traces and layout of a figure; ``meta.role`` and ``name`` say what takes which colour."""
    ends = [step for phase in story.phases for step in (phase.steps[0], phase.steps[-1])]
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.015 or 0.5
    marks = _alarm_marks(story.alarms, high - low)
    return {
        "key": figure.key,
        "wide": figure.wide,
        "stacked": figure.stacked,
        "clip": figure.clip,
        "toggles": figure.toggles,
        "limit": figure.limit,
        "percent": figure.percent,
        "alarms": bool(marks),
        "data": [trace for series in figure.series for trace in _traces(figure, series)],
        "layout": {
            "shapes": [*_bands(story), *_alarm_lines(story.alarms), *limit_line(figure)],
            "annotations": [*_band_labels(story), *marks, *limit_label(figure)],
            "xaxis": {"title": {"text": "step"}, "range": [low - pad, high + pad]},
            "yaxis": {"tickformat": ".0%" if figure.percent else ""},
        },
    }


def swatch(role: str) -> str:
    """A piece of a series' line as inline SVG, for legends."""
    style = STYLES.get(role, PLAIN)
    marker = MARKERS[style.marker.removesuffix("-open")]
    fill = "var(--page)" if style.marker.endswith("-open") else "currentColor"
    return (
        f'<svg class="swatch" style="color:{color(role)}" width="34" height="12" '
        'viewBox="0 0 34 12" aria-hidden="true"><path d="M1 6H33" stroke="currentColor" '
        f'fill="none" stroke-width="{style.width}" stroke-dasharray="{DASHES[style.dash]}"/>'
        f'<path d="{marker}" transform="translate(17 6)" stroke="currentColor" fill="{fill}"/>'
        "</svg>"
    )


def color(role: str) -> str:
    """The CSS colour of a role; one that the style sheet does not know has the plain one."""
    return f"var(--c-{role})" if role in STYLES else "var(--c-plain)"


def table(figure: Figure) -> str:
    """The numbers of a figure as an HTML table: a row per probe, a column per line."""
    heads = "".join(f'<th scope="col">{inline(series.name)}</th>' for series in figure.series)
    rows = [
        f'<tr><td><bdi>{shown(phase)}</bdi></td><th scope="row">{step}</th>'
        + "".join(f"<td>{written(s.points[i][j], figure.percent)}</td>" for s in figure.series)
        + "</tr>"
        for i, (phase, steps) in enumerate(figure.axis)
        for j, step in enumerate(steps)
    ]
    unit = "" if figure.percent else f" in {figure.unit}"
    return (
        f"<table><caption>{escape(figure.title)}{unit}</caption>"
        f'<thead><tr><th scope="col">phase</th><th scope="col">step</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def written(value: Value, percent: bool = False, signed: bool = False) -> str:
    """A number for people, with a real minus sign; a dash where it is absent."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{value:{sign}.0%}" if percent else f"{value:{sign}.2f}"
    zero = not text.strip("+-0.%")
    return text.lstrip("+-") if zero else text.replace("-", "\N{MINUS SIGN}")


def digits(value: Value) -> str:
    """A number of any size with three digits and a real minus sign; a dash where it is absent."""
    if value is None:
        return "–"
    text = f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return text.replace("-", "\N{MINUS SIGN}")


def _traces(figure: Figure, series: Series) -> Iterable[Spec]:
    runs = list(zip(figure.axis, series.points, strict=True))
    if figure.stacked:
        for index, ((_, steps), values) in enumerate(runs):
            yield _area(figure, series, index, steps, values)
        return
    # a gap between phases: each one has its own baseline
    x = _joined([steps for (_, steps), _ in runs])
    y = _joined([values for _, values in runs])
    yield line_trace(figure, series, x, y)


def _joined(pieces: Sequence[Sequence[Value]]) -> list[Value]:
    return [value for piece in pieces for value in (*piece, None)][:-1]


def line_trace(figure: Figure, series: Series, x: Sequence[Value], y: Sequence[Value]) -> Spec:
    """One line of a figure as a plotly trace."""
    style = STYLES.get(series.role, PLAIN)
    shape = "%{y:.0%}" if figure.percent else "%{y:.2f}"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(series.name),
        "meta": {"role": series.role},
        "x": list(x),
        "y": [_short(value) for value in y],
        "line": {"dash": style.dash, "width": style.width},
        "marker": {"symbol": style.marker, "size": 7, "maxdisplayed": 14},
        "hovertemplate": shape,
    }


def _area(
    figure: Figure, series: Series, index: int, steps: Sequence[int], values: Sequence[Value]
) -> Spec:
    spec = line_trace(figure, series, list(steps), values)
    pattern = {"shape": PATTERNS[series.role], "fillmode": "overlay", "size": 6, "solidity": 0.2}
    return {**spec, "mode": "lines", "stackgroup": f"phase{index}", "fillpattern": pattern}


def _short(value: Value) -> Value:
    return None if value is None else float(f"{value:.5g}")


def _bands(story: Story) -> list[Spec]:
    return [
        {
            "type": "rect",
            "name": f"phase-{index % 2}",
            "layer": "below",
            "yref": "paper",
            "x0": phase.steps[0],
            "x1": phase.steps[-1],
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
        }
        for index, phase in enumerate(story.phases)
    ]


def _band_labels(story: Story) -> list[Spec]:
    return [_label(phase.steps[0], plot_text(phase.name), "phase") for phase in story.phases]


def _label(x: float, text: str, name: str) -> Spec:
    return {
        "name": name,
        "text": text,
        "x": x,
        "y": 1,
        "yref": "paper",
        "xanchor": "left" if name == "phase" else "center",
        "yanchor": "bottom",
        "showarrow": False,
    }


def _alarm_lines(alarms: Sequence[Alarm]) -> list[Spec]:
    return [
        {
            "type": "line",
            "name": "alarm",
            "yref": "paper",
            "x0": step,
            "x1": step,
            "y0": 0,
            "y1": 1,
        }
        for step in sorted({alarm.on for alarm in alarms})
    ]


def _alarm_marks(alarms: Sequence[Alarm], span: float) -> list[Spec]:
    groups: list[list[int]] = []
    for index, alarm in enumerate(alarms):
        if groups and alarm.on - alarms[groups[-1][0]].on <= MERGED_SHARE * span:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_label(alarms[group[0]].on, _numbers(group), "alarm") for group in groups]


def _numbers(group: Sequence[int]) -> str:
    first, last = group[0] + 1, group[-1] + 1
    return f"{first}" if first == last else f"{first}–{last}"


def limit_line(figure: Figure) -> list[Spec]:
    """The size from which an alarm counts, as a shape."""
    if figure.limit is None:
        return []
    line = {"type": "line", "name": "limit", "xref": "paper", "x0": 0, "x1": 1}
    return [{**line, "y0": figure.limit, "y1": figure.limit}]


def limit_label(figure: Figure) -> list[Spec]:
    """The name of that line."""
    if figure.limit is None:
        return []
    size = f"{figure.limit:.0%}" if figure.percent else f"{figure.limit:g} nats"
    return [
        {
            "name": "limit",
            "text": f"alarm above {size}",
            "xref": "paper",
            "x": 0,
            "y": figure.limit,
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
        }
    ]
