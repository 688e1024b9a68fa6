"""`forcegauge compare`: several runs in one table and on one page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
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

    from forcegauge.compare_table import plain_table, rich_table, settings_rows

    console = Console(highlight=False)
    title = f"Phase {comparison.phase or '(each one’s last)'}, nats per token"
    if console.is_terminal:
        console.print(f"{title}\n", style="bold")
        console.print(rich_table(comparison))
    else:
        click.echo(f"{title}\n\n{plain_table(comparison)}")
    click.echo("\n" + "\n".join(_words(comparison)))
    if rows := settings_rows(comparison):
        click.echo(f"\n{_settings(rows)}")


def _words(comparison: Comparison) -> Iterator[str]:
    from forcegauge.compare_table import said
    from forcegauge.reporting.safe import plain

    yield from map(plain, said(comparison))
    yield from (f"Note: {plain(note)}" for note in comparison.notes)


def _settings(rows: list[tuple[str, ...]]) -> str:
    from forcegauge.compare_table import aligned

    return aligned(rows)
