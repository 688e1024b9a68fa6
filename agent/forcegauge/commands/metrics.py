"""``forcegauge metrics``: the catalogue, for people, for a page, for a script."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict

import click

from forcegauge.catalogue import LABEL_VALUES, METRICS, Metric
from forcegauge.probes import UNTRAINED_NATURAL

WIDEST = 100
NOTATION = (
    "Every series also carries the label run. In the formulas pi is the model's distribution at "
    "one position, y_t the token of the fixed response there, pi* = max_v pi(v) in the same "
    "context (teacher-forced), mean_t is over a response's tokens, mean_i over the probes, and "
    "log pi(f) of a response type f is mean_i mean_t log pi(y_t). D is the value minus the one of "
    "the phase's baseline, x the prompt, y the response, L the loss, e_y the one-hot of y_t. "
    f"Untrained natural types are {', '.join(UNTRAINED_NATURAL)}. Ren & Sutherland is "
    "arXiv 2407.10490."
)
"""What the formulas' symbols stand for."""

COLUMNS = ("metric", "type", "labels", "unit", "meaning", "formula")


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "markdown", "json")),
    default="table",
    show_default=True,
    help="For reading in a terminal, for a page, or for a script.",
)
def metrics(form: str) -> None:
    """Print every metric with its unit, meaning and formula."""
    click.echo({"table": _table, "markdown": _markdown, "json": _json}[form]())


def _table() -> str:
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return "\n\n".join([textwrap.fill(NOTATION, width), *(_block(row, width) for row in METRICS)])


def _block(row: Metric, width: int) -> str:
    labels = f"{{{', '.join(row.labels)}}}" if row.labels else ""
    kind = ", ".join(part for part in (row.kind, row.unit) if part)
    head = f"{row.name}{labels}"
    gap = "  " if len(head) + len(kind) + 2 <= width else "\n  "
    body = textwrap.fill(row.meaning, width, initial_indent="  ", subsequent_indent="  ")
    formula = textwrap.fill(
        f"= {row.formula}", width, initial_indent="  ", subsequent_indent="    "
    )
    return f"{click.style(head, bold=True)}{gap}{kind}\n{body}\n{formula}"


def _markdown() -> str:
    rows = [
        (_code(r.name), r.kind, _codes(r), r.unit, r.meaning, _code(r.formula)) for r in METRICS
    ]
    table = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join([NOTATION, "", *("| " + " | ".join(cells) + " |" for cells in table)])


def _codes(row: Metric) -> str:
    return ", ".join(_code(label) for label in row.labels)


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _json() -> str:
    rows = [{**asdict(row), "labels": ("run", *row.labels)} for row in METRICS]
    return json.dumps({"metrics": rows, "label_values": LABEL_VALUES}, indent=2)
