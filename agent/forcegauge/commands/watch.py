"""`forcegauge watch`: a run, live in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forcegauge.errors import InputError

if TYPE_CHECKING:
    from forcegauge.watching.showing import Source

RECORD_SECONDS, PAGE_SECONDS = 2.0, 10.0


@click.command()
@click.argument("where", metavar="RUN_DIR|URL")
@click.option("--run", help="The run's name, where URL is a monitor's or serves several runs.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.2),
    help="Seconds between two looks.  [default: 2 at a folder, 10 at a URL]",
)
def watch(where: str, run: str | None, seconds: float | None) -> None:
    """Watch a run live: its record in RUN_DIR, its agent at URL, or a monitor's --run.

    Reads only, the training is not touched. A run that has ended is shown as it was at its end.
    Where no screen can be drawn (a pipe, TERM=dumb) every probe is a line. Ctrl-C leaves.
    """
    from rich.console import Console

    from forcegauge.watching.showing import watch

    url = where.startswith(("http://", "https://"))
    source = _at(where, run) if url else _in(where, run)
    default = PAGE_SECONDS if url else RECORD_SECONDS
    watch(source, Console(highlight=False, markup=False), seconds or default)


def _in(where: str, run: str | None) -> Source:
    from forcegauge.watching.showing import Recorded

    if run is not None:
        fix = "Leave it out: the folder holds one run"
        raise InputError("is for the URL of an agent or a monitor", field="--run", fix=fix)
    return Recorded(Path(where))


def _at(where: str, run: str | None) -> Source:
    from forcegauge.watching.monitored import Monitored, is_monitor
    from forcegauge.watching.scraping import Agent

    return Monitored(where, run) if is_monitor(where) else Agent(where, run)
