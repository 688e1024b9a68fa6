"""What lies beside the run: snapshots of its checkpoints, and the ranking of its pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from forcegauge.record import Line
from forcegauge.reporting.plots import written
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import Story, field, number

SNAPSHOT_PAGE = "snapshot.html"
PAIRS_PAGES = "*.ranked.html"
LARGEST_METRICS = 2_000_000
"""Bytes of a snapshot's numbers that are read."""
TABLES = {
    "attribution_nats": "who pushes what, nats per unit of learning rate",
    "entk_norm": "the kernel’s norm",
}


def beside_section(folder: Path, page: Path, story: Story) -> str:
    """Snapshots with their main numbers and links from ``page``, and links to rankings."""
    snapshots = "".join(_snapshot(line, where, page) for line, where in _snapshots(folder, story))
    rankings = "".join(
        f"<li>{_link(each, page, each.name)}</li>" for each in sorted(folder.glob(PAIRS_PAGES))
    )
    listed = f"<h3>Pairs, ranked before training</h3><ul>{rankings}</ul>" if rankings else ""
    if not snapshots and not listed:
        return ""
    reading = (
        '<p class="reading">What the monitor computed from checkpoints: the rows are response '
        "types, the columns what was trained on. Blue raises, orange lowers.</p>"
        if snapshots
        else ""
    )
    return (
        f'<section class="card long"><h2>Beside this run</h2>{reading}{snapshots}{listed}</section>'
    )


def _snapshots(folder: Path, story: Story) -> Iterator[tuple[Line, Path]]:
    """Those that the record tells of, then others in the run's folder."""
    told = [(line, folder / str(line.get("path", ""))) for line in story.snapshots]
    yield from told
    known = {where.resolve() for _, where in told}
    for each in sorted((folder / "snapshots").glob(f"*/{SNAPSHOT_PAGE}")):
        if each.parent.resolve() not in known:
            yield {"id": each.parent.name}, each.parent


def _snapshot(line: Line, where: Path, page: Path) -> str:
    metrics = field(line, "metrics") or _metrics(where)
    step = number(field(metrics, "snapshot_step")) or number(line.get("step"))
    title = f"Snapshot {inline(line.get('id', where.name))}"
    at = "" if step is None else f" <small>step {step:.0f}</small>"
    target = where if where.is_file() else where / SNAPSHOT_PAGE
    link = f"<p>{_link(target, page, 'Open its page')}</p>" if target.is_file() else ""
    tables = "".join(_table(field(metrics, key), words) for key, words in TABLES.items())
    return f'<details class="probe" open><summary>{title}{at}</summary>{link}{tables}</details>'


def _metrics(where: Path) -> Mapping[str, Any]:
    path = where / "metrics.json"
    try:
        if path.stat().st_size > LARGEST_METRICS:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _link(target: Path, page: Path, words: str) -> str:
    relative = Path(os.path.relpath(target, page.parent)).as_posix()
    return f'<a href="./{quote(relative)}">{inline(words)}</a>'


def _table(values: object, words: str) -> str:
    """A table of types by what was trained on, coloured by sign and size."""
    known = values if isinstance(values, Mapping) else {}
    rows = {str(kind): row for kind, row in known.items() if isinstance(row, Mapping)}
    columns = list(dict.fromkeys(str(name) for row in rows.values() for name in row))
    found = [number(value) for row in rows.values() for value in row.values()]
    largest = max((abs(value) for value in found if value is not None), default=0.0)
    if not largest:
        return ""
    heads = "".join(f'<th scope="col">{inline(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{inline(kind)}</th>'
        + "".join(_cell(row.get(name), largest) for name in columns)
        + "</tr>"
        for kind, row in rows.items()
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{shown(words)}"><table>'
        f'<caption>{words}</caption><thead><tr><th scope="col">response type</th>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object, largest: float) -> str:
    known = number(value)
    if known is None:
        return "<td>–</td>"
    way, share = "rose" if known > 0 else "fell", 100 * abs(known) / largest
    return f'<td class="{way}" style="--heat:{share:.0f}">{written(known)}</td>'
