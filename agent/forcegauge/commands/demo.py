"""`forcegauge demo`: the main job on a real model, from start to report."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import click

from forcegauge.errors import InputError

NEEDED = ("datasets", "trl")


@click.command()
@click.option("--healthy", is_flag=True, help="SFT on both answers first: DPO squeezes far less.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="New directory for the run; by default a numbered one in forcegauge-demo.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    envvar="FORCEGAUGE_PORT",
    default=9790,
    show_default=True,
    help="Port of /metrics; 0 takes a free one.",
)
def demo(healthy: bool, output: Path | None, port: int) -> None:
    """Finetune a small real model and watch it: a short SFT, then a DPO that squeezes.

    Takes about 5 minutes and 4 GB of memory on 2 CPU cores, and 2 GB of disk for the checkpoints.
    """
    _check_installed()
    from forcegauge.exporter import endpoint

    # Before anything slow: a busy port should not cost a model's loading.
    served = endpoint(os.environ.get("FORCEGAUGE_BIND") or "127.0.0.1", port)

    from rich.console import Console

    from forcegauge.demo.run import empty_directory, new_directory, run_demo, run_name
    from forcegauge.demo.trainers import Recipe

    recipe = Recipe(healthy=healthy)
    directory = (
        new_directory(Path("forcegauge-demo"), run_name(recipe))
        if output is None
        else empty_directory(output)
    )
    run_demo(recipe, directory, served, Console(highlight=False))


def _check_installed() -> None:
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            fix = "Install it with: pip install 'forcegauge[demo]'"
            raise InputError(f"the demo needs {name}, which is not installed", fix=fix)
    if os.environ.get("FORCEGAUGE_DISABLED", "") not in ("", "0"):
        raise InputError("FORCEGAUGE_DISABLED is set", fix="Unset it: the demo shows the agent")
