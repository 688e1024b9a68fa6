"""The run as one self-contained page: the paper's figure for this run, the verdict, the numbers.

The page asks the network for nothing: plots, data and style are inside it, and its content
security policy forbids requests. Without a script the verdict, the times and the tables remain.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from forcegauge.errors import InputError
from forcegauge.record import read_record
from forcegauge.reporting.facts import facts_section, latest_section
from forcegauge.reporting.figures import Figure, figures
from forcegauge.reporting.headline import headline, standing, tiles
from forcegauge.reporting.outputs import outputs_section, probes_section
from forcegauge.reporting.plots import plotly_spec, swatch, table
from forcegauge.reporting.safe import inline, script_json, shown
from forcegauge.reporting.story import Story, tell
from forcegauge.reporting.timeline import timeline
from forcegauge.textfiles import read_lines, write_whole

REPORT_NAME = "report.html"
PLOTTED_PROBES = 600
TABLED_PROBES = 60
"""Most probes of a phase that are drawn and tabled, evenly spread: the record holds all."""


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run and return its path, by default RUN_DIR/report.html.

    Raises `InputError` for a directory without a readable record or a path that cannot be
    written to, `RunError` when writing fails; the file is written whole or not at all.
    """
    folder = Path(run_dir)
    target = folder / REPORT_NAME if output is None else Path(output)
    write_whole(target, render(folder))
    return target


def render(folder: Path) -> str:
    """The page as HTML; raises `InputError` where there is no record to tell of."""
    if not folder.is_dir():
        raise InputError("is no directory", fix="Name a run's directory", file=folder)
    lines = read_record(folder)
    if not lines:
        fix = "Look again when the run has started"
        raise InputError("the record is empty", fix=fix, file=folder / "record.jsonl")
    return _page(tell(lines), _rows(folder / "greedy.jsonl"), _rows(folder / "probes.jsonl"))


def _page(story: Story, greedy: list[dict[str, Any]], probes: list[dict[str, Any]]) -> str:
    drawn = figures(story, PLOTTED_PROBES)
    body = (
        headline(story),
        tiles(story),
        _figures_html(drawn[:1], figures(story, TABLED_PROBES)[:1]),
        timeline(story),
        _figures_html(drawn[1:], figures(story, TABLED_PROBES)[1:]),
        outputs_section(greedy),
        latest_section(story),
        probes_section(probes),
        facts_section(story),
    )
    return Template(_asset("page.html")).substitute(
        title=f"{shown(story.name)} · forcegauge report",
        run=inline(story.name),
        standing=standing(story),
        body="\n".join(part for part in body if part),
        figures=script_json([plotly_spec(figure, story) for figure in drawn]),
        plotly=_packed_plotly() if drawn else "",
        style=_asset("page.css"),
        script=_asset("page.js"),
        version=metadata.version("forcegauge"),
    )


def _figures_html(drawn: Iterable[Figure], tabled: Iterable[Figure]) -> str:
    cards = [_figure_html(figure, rows) for figure, rows in zip(drawn, tabled, strict=True)]
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _figure_html(figure: Figure, tabled: Figure) -> str:
    wide = " wide" if figure.wide else ""
    unit = "" if figure.percent else f" <small>{figure.unit}</small>"
    kept = sum(len(steps) for _, steps in tabled.axis)
    every = sum(len(steps) for _, steps in figure.axis)
    thin = f" ({kept} of {every} probes; the record holds all)" if kept < every else ""
    return (
        f'<figure class="card{wide}"><figcaption><h2>{figure.title}{unit}</h2>'
        f'<p class="reading" id="reading-{figure.key}">{figure.reading}</p></figcaption>'
        f'{_legend(figure)}<div class="plot" id="plot-{figure.key}" role="img" '
        f'aria-label="{figure.title}" aria-describedby="reading-{figure.key}"></div>'
        '<p class="plain">This browser draws no plots: here are the numbers.</p>'
        f"<noscript><p>Without a script there are no plots: the numbers are below.</p></noscript>"
        f'<details><summary>Numbers{thin}</summary><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{figure.title}, numbers">{table(tabled)}</div></details>'
        "</figure>"
    )


def _legend(figure: Figure) -> str:
    items = "".join(f"<li>{_legend_item(figure, s.name, s.role)}</li>" for s in figure.series)
    labelled = "" if figure.toggles or figure.stacked else " labelled"
    return f'<ul class="legend{labelled}">{items}</ul>'


def _legend_item(figure: Figure, name: str, role: str) -> str:
    inside = f"{swatch(role)}{inline(name)}"
    if not figure.toggles:
        return f"<span>{inside}</span>"
    return f'<button type="button" aria-pressed="true" data-role="{shown(role)}">{inside}</button>'


def _rows(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file that may be absent; a torn last line is left out."""
    if not path.exists():
        return []
    lines = [(number, text) for number, text in read_lines(path) if text.strip()]
    rows = []
    for number, text in lines:
        try:
            row = json.loads(text)
        except ValueError:
            if number == lines[-1][0]:
                break
            raise InputError("is not JSON", file=path, line=number) from None
        rows.append(row)
    return [row for row in rows if isinstance(row, dict)]


def _asset(name: str) -> str:
    return resources.files("forcegauge.reporting").joinpath(name).read_text(encoding="utf-8")


@cache
def _packed_plotly() -> str:
    """The plotting library, gzip in base64: 2 MB in place of 5; the page inflates it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
