"""`forcegauge monitor ...`: the monitor's commands."""

from __future__ import annotations

from typing import Any

import click

from forcegauge.errors import InputError
from forcegauge_monitor.commands.grafana import grafana
from forcegauge_monitor.commands.overview import requeue, runs, status
from forcegauge_monitor.commands.rules import rules
from forcegauge_monitor.commands.service import beat, serve, token, up, worker
from forcegauge_monitor.commands.snapshot import snapshot
from forcegauge_monitor.commands.watch import unwatch, watch


class Commands(click.Group):
    """Commands that import what they need when they are called, and say what is not installed."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call a command; raises `InputError` where a package of the extra is missing."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            problem = f"the monitor is not installed (no module {error.name})"
            fix = "Install it with: pip install 'forcegauge[monitor]'"
            raise InputError(problem, fix=fix) from None


@click.group(cls=Commands)
def monitor() -> None:
    """A service that knows the runs, and snapshots: which samples push what, does theory hold."""


for command in (up, serve, worker, beat, token, status, runs, snapshot, requeue, watch, unwatch):
    monitor.add_command(command)
monitor.add_command(grafana)
monitor.add_command(rules)
