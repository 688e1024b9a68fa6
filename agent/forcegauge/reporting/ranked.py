"""The pairs that `forcegauge pairs` ranked before the training: both ends of each ranking."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from forcegauge.reporting.plots import digits
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import field, number

ENDS = 5
"""Pairs shown of each end."""
TAIL_BYTES = 64_000
COLUMNS = {
    "entanglement": "entanglement ρ⁺",
    "predicted_chosen_change": "chosen moves by",
    "predicted_rejected_change": "rejected moves by",
    "squeeze_law_nats": "squeeze law",
}


def ranking_html(path: Path) -> str:
    """A table of the most and the least entangled pairs; empty where the file is no ranking."""
    rows = _both_ends(path)
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{words}</th>' for words in COLUMNS.values())
    return (
        '<p class="reading">Most entangled first: above 1 the first step of a preference loss '
        "lowers chosen while the margin grows. Changes are first-order, through the head, per "
        "learning rate and weight.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{shown(path.name)}"><table>'
        f'<thead><tr><th scope="col">rank</th><th scope="col">pair</th>{heads}</tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div>"
    )


def _row(row: object) -> str:
    cells = "".join(f"<td>{digits(number(field(row, name)))}</td>" for name in COLUMNS)
    rank = number(field(row, "rank"))
    return (
        f'<tr><td>{"–" if rank is None else f"{rank:.0f}"}</td><th scope="row">'
        f"{inline(field(row, 'id'))}</th>{cells}</tr>"
    )


def _both_ends(path: Path) -> list[object]:
    """First and last rows, each once, whatever the file's length."""
    try:
        with path.open("rb") as stream:
            first = _rows(islice(stream, ENDS))
            here, end = stream.tell(), stream.seek(0, os.SEEK_END)
            if stream.seek(max(here, end - TAIL_BYTES)) > here:
                stream.readline()  # what the leap came down in
            last = _rows(stream)[-ENDS:]
    except OSError:
        return []
    return first + last


def _rows(lines: Iterable[bytes]) -> list[object]:
    found: list[object] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if field(row, "rank") is not None:
            found.append(row)
    return found
