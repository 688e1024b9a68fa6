"""Replays the detectors on all recorded finetunes: confusion table, lead times, side by side.

make bench-alarms, or python -m tests.benchmarks.alarms; it writes agent/alarms.md with its picture.
A new run is recorded by python -m tests.benchmarks.finetunes NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from tests.benchmarks import alarms_page
from tests.benchmarks.calibration import recorded
from tests.benchmarks.results import HEADER, RUN_HEADER, confusion, per_run, results


def shown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    return table


@click.command()
def main() -> None:
    """Print both tables and write the page."""
    runs = recorded()
    found = results(runs)
    console = Console(width=120)
    console.print(shown("Runs, thresholds as shipped", RUN_HEADER, per_run(found[0])))
    console.print(shown(f"{len(runs)} runs", (*HEADER, "median lead"), confusion(found)))
    alarms_page.write(runs, found)


if __name__ == "__main__":
    main()
