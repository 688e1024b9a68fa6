"""`forcegauge monitor`: what is computed from checkpoints, in a package of its own."""

from __future__ import annotations

from typing import Any

import click

from forcegauge.errors import InputError

try:
    from forcegauge_monitor.cli import monitor
except ModuleNotFoundError as error:
    absent = error.name

    @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def monitor(**_: Any) -> None:
        """Say which extra the monitor needs."""
        problem = f"the monitor is not installed (no module {absent})"
        raise InputError(problem, fix="Install it with: pip install 'forcegauge[monitor]'")
