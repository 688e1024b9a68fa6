"""What is to be done in a Grafana: looked at first, shown, and then done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forcegauge_monitor.grafana_http import RefusedError

FOLDER = "forcegauge"
DATASOURCE = "forcegauge-prometheus"

Json = dict[str, Any]
State = Literal["created", "changed", "same", "removed", "kept"]


@dataclass(frozen=True)
class Change:
    """What an object is to become: ``lines`` differ, ``note`` says why it is kept."""

    state: State
    kind: str
    name: str
    lines: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Step:
    """What one request, or a few, do to one or more objects; nothing without ``write``."""

    changes: Sequence[Change]
    write: Callable[[], Any] | None = None


Look = Callable[[], Step]
"""Looks into Grafana and says what there is to do."""


@dataclass(frozen=True)
class Wanted:
    """What is to be in Grafana.

    ``prometheus`` is the URL of the data source that is ours, ``datasource`` the uid of the one
    that alert rules ask; ``alerts`` makes groups of them, as in Grafana's provisioning files, of
    that uid; ``webhook`` is where their alerts go. With ``overwrite`` what somebody edited is not
    kept.
    """

    dashboards: Sequence[Json]
    prometheus: str = ""
    datasource: str = ""
    alerts: Callable[[str], Sequence[Json]] | None = None
    webhook: str = ""
    overwrite: bool = False


def settled(look: Look) -> Step:
    """Look, and do what there is to do; raises as `Grafana.call`.

    What a lost answer made look like a conflict, or somebody else did meanwhile, is no error.
    """
    step = look()
    if step.write is None:
        return step
    try:
        step.write()
    except RefusedError:
        again = look()
        if again.write is not None:
            raise
        return again if any(change.state == "kept" for change in again.changes) else step
    return step


def one(
    state: State,
    kind: str,
    name: str,
    *,
    lines: Sequence[str] = (),
    note: str = "",
    write: Callable[[], Any] | None = None,
) -> Step:
    """A step of one object."""
    return Step([Change(state, kind, name, lines, note)], write)
