"""`forcegauge monitor status`, `runs` and `requeue`: what the store knows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from forcegauge.errors import InputError, RunError
from forcegauge_monitor.commands.service import settings_of, settings_option

if TYPE_CHECKING:
    from rich.table import Table

    from forcegauge_monitor.records import Run, Snapshot
    from forcegauge_monitor.store import Store

SHOWN_RUNS = 20
SHOWN_SNAPSHOTS = 10


@contextmanager
def opened(file: str | None) -> Iterator[Store]:
    """The store of the settings; raises `RunError` where Redis cannot be reached."""
    from forcegauge_monitor.store import Unavailable, open_store

    store = open_store(settings_of(file))
    try:
        yield store
    except Unavailable as error:
        raise RunError(f"Redis cannot be reached ({error}). Does the monitor run?") from None
    finally:
        store.close()


@click.command()
@settings_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
def runs(file: str | None, as_json: bool, limit: int) -> None:
    """List the runs, the newest first, with their last verdict."""
    from rich.console import Console

    from forcegauge_monitor.records import to_json

    with opened(file) as store:
        found, total = store.runs(0, limit)
    if as_json:
        for run in found:
            click.echo(json.dumps(to_json(run)))
        return
    Console().print(_runs_table(found, total))


@click.command()
@settings_option
@click.option("--once", is_flag=True, help="Print it once and end.")
@click.option("--seconds", type=click.FloatRange(min=0.2), default=2.0, show_default=True)
def status(file: str | None, once: bool, seconds: float) -> None:
    """Show runs, snapshots and workers, live until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    with opened(file) as store:
        if once:
            Console().print(*_tables(store), sep="\n")
            return
        from rich.console import Group

        with Live(Group(*_tables(store)), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(Group(*_tables(store)), refresh=True)


@click.command()
@settings_option
@click.argument("names", nargs=-1, metavar="[RUN/ID]...")
@click.option("--all", "every", is_flag=True, help="Queue all of them again.")
def requeue(file: str | None, names: tuple[str, ...], every: bool) -> None:
    """List the snapshots that failed, with the reason, or queue them again."""
    from forcegauge_monitor.broker import make_app, submit

    with opened(file) as store:
        failed = {f"{each.run}/{each.id}": each for each in store.dead()}
        if not names and not every:
            _list_failed(failed)
            return
        send = submit(make_app(settings_of(file)))
        for name in failed if every else names:
            run, _, key = name.partition("/")
            again = store.requeue(run, key)
            if again is None:
                fix = "See which ones did with: forcegauge monitor requeue"
                raise InputError(f"{name} is no snapshot that failed or was cancelled", fix=fix)
            send(again)
            click.echo(f"{name} is queued again.")


def _list_failed(failed: dict[str, Snapshot]) -> None:
    for name, each in failed.items():
        click.echo(f"{name}  step {each.step}  {_ago(each.finished)}: {each.reason}")
    if not failed:
        click.echo("No snapshot failed.")


def _tables(store: Store) -> list[Table]:
    known, total = store.runs(0, SHOWN_RUNS)
    overview = store.overview()
    tables = [_runs_table(known, total), _snapshots_table(store, known), _table("worker")]
    for name in ("queues", "does"):
        tables[2].add_column(name)
    for worker in sorted(overview.workers, key=lambda each: each.name):
        tables[2].add_row(worker.name, worker.queue, "works" if worker.busy else "waits")
    tables[2].add_row(
        "beat", "", f"chores {_ago(overview.beat)}" if overview.beat else "[red]none[/]"
    )
    return tables


def _runs_table(known: list[Run], total: int) -> Table:
    table = _table("run", "state", "verdict", "since step", "step", "heard of")
    for run in known:
        colour = {"learning": "green", "warming": "default"}.get(run.verdict, "red")
        verdict = f"[{colour}]{run.verdict}[/]"
        seen = _ago(run.seen)
        table.add_row(run.run, run.state, verdict, str(run.since_step), str(run.step), seen)
    if total > len(known):
        table.caption = f"{total - len(known)} more runs"
    return table


def _snapshots_table(store: Store, known: list[Run]) -> Table:
    table = _table("snapshot", "step", "state", "pieces", "reason")
    found = [each for run in known for each in store.snapshots(run.run)]
    for each in sorted(found, key=lambda one: -one.created)[:SHOWN_SNAPSHOTS]:
        pieces = f"{each.pieces_done}/{each.pieces_total}" if each.pieces_total else ""
        table.add_row(f"{each.run}/{each.id}", str(each.step), each.state, pieces, each.reason)
    return table


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD)


def _ago(then: float | None) -> str:
    seconds = time.time() - (then or 0.0)
    if seconds < 90:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 5400 else f"{seconds / 3600:.0f} h ago"
