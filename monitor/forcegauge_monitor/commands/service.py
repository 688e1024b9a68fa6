"""`forcegauge monitor up`, `serve`, `worker` and `beat`: the monitor's processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from forcegauge.errors import InputError

if TYPE_CHECKING:
    from forcegauge_monitor.settings import Settings

DATA = "forcegauge-monitor"
SETTINGS = "settings.json"

settings_option = click.option(
    "--settings",
    "file",
    metavar="FILE",
    help=f"Settings (TOML or JSON), under FORCEGAUGE_MONITOR_*.  [default: {DATA}/{SETTINGS}, "
    "which `up` writes, where it is there]",
)


def settings_of(file: str | None, **flags: Any) -> Settings:
    """The settings of a command; raises `InputError` as `load_settings` does."""
    from forcegauge_monitor.settings import load_settings

    mine = Path(DATA) / SETTINGS
    return load_settings(file or (mine if mine.is_file() else None), **flags)


@click.command()
@settings_option
@click.option("--bind", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port.  [default: 8790]")
def serve(file: str | None, **flags: Any) -> None:
    """Answer HTTP: runs, snapshots, Prometheus' service discovery and metrics."""
    import uvicorn

    from forcegauge_monitor.api import create_app
    from forcegauge_monitor.broker import make_app, submit
    from forcegauge_monitor.store import open_store

    settings = settings_of(file, **flags)
    app = create_app(settings, open_store(settings), submit(make_app(settings)))
    uvicorn.run(app, host=settings.bind, port=settings.port, log_level="warning")


@click.command()
@settings_option
@click.option("--queues", metavar="NAMES", help="Queues, by commas: cpu, gpu, scores.")
@click.option("--pool", type=click.Choice(["solo", "prefork"]), default="solo", show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), default=2, help="Of prefork.")
@click.option("--name", help="The worker's name.  [default: HOST-PID]")
@click.option("--alive-file", metavar="FILE", help="Touched every two seconds while it lives.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after so long without work, with the solo pool.",
)
def worker(
    file: str | None,
    queues: str | None,
    pool: str,
    concurrency: int,
    name: str | None,
    alive_file: str | None,
    idle_exit: float | None,
) -> None:
    """Do the pieces of snapshots, one at a time, or as many as a prefork pool has processes."""
    if idle_exit is not None and pool != "solo":
        raise InputError("is for --pool solo only", field="--idle-exit")
    settings = settings_of(file)
    # the first process of a container is deaf to it otherwise, and torch takes seconds to load
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from forcegauge_monitor.tasks import run_worker

    run_worker(
        settings,
        queues=(queues or f"{settings.queue},scores").split(","),
        pool=pool,
        concurrency=concurrency if pool == "prefork" else 1,
        name=name or f"{socket.gethostname()}-{os.getpid()}",
        alive_file=Path(alive_file) if alive_file else None,
        idle_seconds=idle_exit,
    )


@click.command()
@settings_option
@click.option("--alive-file", metavar="FILE", help="Touched every ten seconds while it works.")
def beat(file: str | None, alive_file: str | None) -> None:
    """Find stale runs and work that nobody does, forget old runs, watch folders."""
    from forcegauge_monitor.chores import run_beat

    run_beat(settings_of(file), Path(alive_file) if alive_file else None)


@click.command()
@click.option("--data", default=DATA, show_default=True, metavar="DIR", help="Everything is here.")
@click.option("--bind", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port.  [default: 8790]")
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="DIR",
    help="Checkpoints, probes and training files may lie here.  [default: this folder]",
)
@click.option("--workers", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--settings", "file", metavar="FILE", help="More settings (TOML or JSON).")
def up(
    data: str,
    bind: str | None,
    port: int | None,
    roots: tuple[str, ...],
    workers: int,
    file: str | None,
) -> None:
    """Run the whole monitor on this machine: an embedded Valkey, API, worker and beat.

    Ctrl-C ends it. The data stay in the folder, and the next call goes on with them.
    """
    from forcegauge_monitor import embedded
    from forcegauge_monitor.settings import load_settings

    folder = Path(data).resolve()
    given = load_settings(file)
    settings = load_settings(
        file,
        redis_url=f"unix://{folder / embedded.SOCKET}?db=0",
        broker_url="",
        storage=str(folder / "snapshots"),
        roots=tuple(str(Path(root).resolve()) for root in roots or given.roots or (".",)),
        bind=bind,
        port=port,
    )
    embedded.run(folder, settings, workers, _asked_to_end(), click.echo)


def _asked_to_end() -> threading.Event:
    """Set by Ctrl-C, SIGTERM and the terminal's end, unless that one is ignored (nohup)."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: ended.set())
    return ended


@click.command()
@click.argument("role", type=click.Choice(["read", "write"]), default="write")
def token(role: Literal["read", "write"]) -> None:
    """Make a token, and the line that allows it.

    The token is for the client, the line for the file that the setting tokens_file names.
    """
    from forcegauge_monitor.auth import new_token

    made, line = new_token(role)
    click.echo("The token, for FORCEGAUGE_TOKEN where training runs:", err=True)
    click.echo(made)
    click.echo("The line for the monitor's tokens_file:", err=True)
    click.echo(line)
