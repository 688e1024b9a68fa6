"""A snapshot that the workers of a monitor take: asked for over HTTP, with a bar."""

from __future__ import annotations

import http.client
import time
from typing import Any

from forcegauge.client import RefusalError, api_url, call
from forcegauge.errors import InputError, RunError

POLL_SECONDS = 1.0
OPEN = ("queued", "running")


def ask(server: str, run: str, asked: dict[str, Any]) -> list[str]:
    """Ask for a snapshot, show how far it is, and tell what came of it.

    Raises `InputError` for what the monitor refuses, `RunError` for a snapshot that failed. Ctrl-C
    leaves it to the workers.
    """
    place = f"{api_url(server)}/runs/{run}/snapshots"
    key = _called("POST", place, asked)["id"]
    found = _followed(f"{place}/{key}", f"{run}/{key}")
    if found["state"] != "done":
        raise RunError(f"{run}/{key} is {found['state']}: {found['reason']}")
    return [f"{found['path']}: the snapshot, of step {found['step']}."]


def _followed(place: str, name: str) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        while (found := _called("GET", place))["state"] in OPEN:
            total = found["pieces_total"] or None
            words = f"{name} {found['state']}"
            bar.update(task, description=words, completed=found["pieces_done"], total=total)
            time.sleep(POLL_SECONDS)
    return found


def _called(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return call(method, url, body)
    except RefusalError as error:
        if error.status >= 500:
            raise RunError(f"{url}: {error}.") from None
        raise InputError(f"the monitor refuses: {error}", field=url) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RunError(f"{url}: no monitor answers ({error}).") from None
