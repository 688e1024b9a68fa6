"""The run as one self-contained page: the paper's figure for this run, the verdict, the numbers.

The page asks the network for nothing: plots, data and style are inside it, and its content
security policy forbids requests. Without a script the verdict, the times and the tables remain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from forcegauge.errors import InputError
from forcegauge.record import read_record
from forcegauge.reporting.assets import asset, packed_plotly
from forcegauge.reporting.beside import beside_section
from forcegauge.reporting.cards import figure_card
from forcegauge.reporting.facts import facts_section, latest_section
from forcegauge.reporting.figures import Figure, figures
from forcegauge.reporting.headline import headline, standing, tiles
from forcegauge.reporting.moved import moved_section
from forcegauge.reporting.outputs import outputs_section, probes_section
from forcegauge.reporting.plots import plotly_spec, table
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
    write_whole(target, render(folder, target))
    return target


def render(folder: Path, target: Path) -> str:
    """The page as HTML, with links as seen from ``target``.

    Raises `InputError` where there is no record to tell of.
    """
    if not folder.is_dir():
        raise InputError("is no directory", fix="Name a run's directory", file=folder)
    lines = read_record(folder)
    if not lines:
        fix = "Look again when the run has started"
        raise InputError("the record is empty", fix=fix, file=folder / "record.jsonl")
    return _page(folder, target, tell(lines))


def _page(folder: Path, target: Path, story: Story) -> str:
    greedy, probes = _rows(folder / "greedy.jsonl"), _rows(folder / "probes.jsonl")
    moved, tokens = moved_section(folder, story, probes, greedy)
    drawn = figures(story, PLOTTED_PROBES)
    body = (
        headline(story),
        tiles(story),
        _figures_html(drawn[:1], figures(story, TABLED_PROBES)[:1]),
        timeline(story),
        _figures_html(drawn[1:], figures(story, TABLED_PROBES)[1:]),
        outputs_section(greedy),
        moved,
        latest_section(story),
        probes_section(probes),
        beside_section(folder, target, story),
        facts_section(story),
    )
    return Template(asset("page.html")).substitute(
        title=f"{shown(story.name)} · forcegauge report",
        run=inline(story.name),
        standing=standing(story),
        body="\n".join(part for part in body if part),
        figures=script_json([plotly_spec(figure, story) for figure in drawn]),
        details=tokens,
        source="run’s record",
        plotly=packed_plotly() if drawn else "",
        style=asset("page.css"),
        script=asset("page.js"),
        version=metadata.version("forcegauge"),
    )


def _figures_html(drawn: Iterable[Figure], tabled: Iterable[Figure]) -> str:
    cards = [_card(figure, rows) for figure, rows in zip(drawn, tabled, strict=True)]
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _card(figure: Figure, tabled: Figure) -> str:
    kept = sum(len(steps) for _, steps in tabled.axis)
    every = sum(len(steps) for _, steps in figure.axis)
    thin = f" ({kept} of {every} probes; the record holds all)" if kept < every else ""
    return figure_card(figure, table(tabled), thin)


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
