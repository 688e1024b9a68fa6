"""What lies beside the run: snapshots of its checkpoints, and the ranking of its pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from forcegauge.record import Line
from forcegauge.reporting.plots import digits
from forcegauge.reporting.pushed import pushers_html, summary
from forcegauge.reporting.ranked import ranking_html
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import Story, Value, field, number

SNAPSHOT_PAGE = "snapshot.html"
PAIRS = "*.ranked.jsonl"
PUSHING = 3
"""Samples shown that raise a response type most, and as many that lower it."""
LARGEST = 2_000_000
"""Bytes of a snapshot's numbers, and of its pushers, that are read."""
TABLES = {
    "attribution_nats": "who pushes what, nats per unit of learning rate",
    "entk_norm": "the kernel’s norm: how strongly, not which way",
}


def beside_section(folder: Path, page: Path, story: Story) -> str:
    """Snapshots with their main numbers and rankings of pairs, with links from ``page``.

    The latest snapshot is told with who pushes most; texts only where the run keeps its own.
    """
    known = sorted((_facts(line, where) for line, where in _snapshots(folder, story)), key=_step)
    texts = (folder / "probes.jsonl").exists()
    snapshots = "".join(
        _snapshot(each, page, _pushing(each, texts) if each is known[-1] else None)
        for each in known
    )
    rankings = "".join(_ranking(each, page) for each in sorted(folder.glob(PAIRS)))
    if not snapshots and not rankings:
        return ""
    reading = (
        '<p class="reading">What the monitor computed from checkpoints: the rows are response '
        "types, the columns what was trained on. Who pushes what: blue raises, orange lowers.</p>"
        if snapshots
        else ""
    )
    body = f"<h2>Beside this run</h2>{reading}{snapshots}{rankings}"
    return f'<section class="card long">{body}</section>'


def _snapshots(folder: Path, story: Story) -> Iterator[tuple[Line, Path]]:
    """Those that the record tells of, then others in the run's folder."""
    told = [(line, folder / str(line.get("path", ""))) for line in story.snapshots]
    yield from told
    known = {where.resolve() for _, where in told}
    for each in sorted((folder / "snapshots").glob(f"*/{SNAPSHOT_PAGE}")):
        if each.parent.resolve() not in known:
            yield {"id": each.parent.name}, each.parent


@dataclass(frozen=True)
class Snapshot:
    """A snapshot's name, its folder or page, its step where known, and its numbers."""

    name: str
    where: Path
    step: Value
    metrics: Mapping[str, Any]


def _facts(line: Line, where: Path) -> Snapshot:
    held = field(line, "metrics")
    metrics = held if isinstance(held, Mapping) else _held(where / "metrics.json")
    step = number(metrics.get("snapshot_step"))
    named = str(line.get("id", where.name))
    return Snapshot(named, where, number(line.get("step")) if step is None else step, metrics)


def _step(snapshot: Snapshot) -> float:
    return -1.0 if snapshot.step is None else snapshot.step


def _snapshot(snapshot: Snapshot, page: Path, pushing: str | None) -> str:
    """Its link and tables; only the latest, with its pushers, is open."""
    at = "" if snapshot.step is None else f" <small>step {snapshot.step:.0f}</small>"
    where = snapshot.where
    target = where if where.is_file() else where / SNAPSHOT_PAGE
    link = f"<p>{_link(target, page, 'Open its page')}</p>" if target.is_file() else ""
    shown_whole = "" if pushing is None else " open"
    tables = "".join(_table(snapshot.metrics.get(key), words) for key, words in TABLES.items())
    return (
        f'<details class="probe"{shown_whole}><summary>Snapshot '
        f"{inline(snapshot.name)}{at}</summary>{link}{tables}{pushing or ''}</details>"
    )


def _pushing(snapshot: Snapshot, texts: bool) -> str:
    """Who pushes most, as far as the snapshot's folder is within reach."""
    pushers = _held(snapshot.where / "pushers.json")
    if not pushers:
        return ""
    sides = snapshot.metrics.get("updated")
    reading = summary(sides if isinstance(sides, list) else [])
    told = pushers_html(pushers, PUSHING, texts=texts)
    return f'<h3>Who pushes most</h3><p class="reading">{reading}</p>{told}'


def _ranking(path: Path, page: Path) -> str:
    """Both ends of a ranking and the link to its page."""
    table, whole = ranking_html(path), path.with_suffix(".html")
    link = f"<p>{_link(whole, page, 'Open its page')}</p>" if whole.is_file() else ""
    if not table and not link:
        return ""
    title = f"<h3>Pairs, ranked before training: {inline(path.name)}</h3>"
    return f"{title}{link}{table}"


def _held(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds; nothing where it cannot be read or is too large for a page."""
    try:
        if path.stat().st_size > LARGEST:
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
    return f'<td class="{way}" style="--heat:{share:.0f}">{digits(known)}</td>'
