"""`forcegauge compare`: several runs in one table and on one page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from forcegauge.compare import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--by",
    type=click.Choice(["step", "tokens"]),
    default="step",
    show_default=True,
    help="What the runs are aligned by; tokens where every record has them.",
)
@click.option("--phase", default="", help="The phase compared.  [default: the last one shared]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PAGE.html",
    help="Write the comparison as one page that needs no network, too.",
)
@click.option("--json", "as_data", is_flag=True, help="Print the comparison for a script.")
def compare(
    runs: tuple[Path, ...], by: str, phase: str, output: Path | None, as_data: bool
) -> None:
    """Put the runs in the directories RUN... side by side.

    Tells which squeezed and which did not, by how much, since which step, and in which settings
    they differ; runs are in the order of what was swept, such as the learning rate.
    """
    from forcegauge.compare import compare as put_beside
    from forcegauge.compare_table import as_json
    from forcegauge.reporting.comparison import write_comparison

    found = put_beside(runs, by=by, phase=phase)
    page = None if output is None else write_comparison(found, output)
    if as_data:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        _print(found)
    if page is not None:
        click.echo(f"Page: {page}", err=as_data)


def _print(comparison: Comparison) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        _print_rich(comparison, console)
    else:
        _print_plain(comparison)


def _print_rich(comparison: Comparison, console: Console) -> None:
    from rich.text import Text

    from forcegauge.compare_table import rich_tables

    console.print(Text(f"{_title(comparison)}\n", "bold"))
    for table in rich_tables(comparison, console.width):
        console.print(table, "")
    for sentence in _words(comparison):
        console.print(Text(sentence))
    _print_settings(comparison)


def _print_plain(comparison: Comparison) -> None:
    from forcegauge.compare_table import plain_table

    told = "\n".join(_words(comparison))
    click.echo(f"{_title(comparison)}\n\n{plain_table(comparison)}\n\n{told}")
    _print_settings(comparison)


def _title(comparison: Comparison) -> str:
    from forcegauge.reporting.safe import plain

    return f"Phase {plain(comparison.phase) or '(each one’s last)'}, nats per token"


def _words(comparison: Comparison) -> Iterator[str]:
    from forcegauge.compare_table import said
    from forcegauge.reporting.safe import plain

    yield from map(plain, said(comparison))
    yield from (f"Note: {plain(note)}" for note in comparison.notes)


def _print_settings(comparison: Comparison) -> None:
    """A row per run: runs are many, settings that differ are few."""
    from forcegauge.compare_table import aligned, settings_rows

    rows = settings_rows(comparison)
    if rows:
        click.echo(f"\n{aligned(list(zip(*rows, strict=True)))}")
