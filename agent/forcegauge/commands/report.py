"""`forcegauge report`: a run's record as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The page to write; by default RUN_DIR/report.html.",
)
def report(run_dir: Path, output: Path | None) -> None:
    """Write the record of the run in RUN_DIR as one HTML page that needs no network."""
    from forcegauge.report import write_report

    click.echo(write_report(run_dir, output))
