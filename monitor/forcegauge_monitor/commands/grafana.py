"""`forcegauge monitor grafana apply`, `diff` and `remove`: what is ours in a Grafana."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from forcegauge.errors import InputError
from forcegauge_monitor.commands.service import settings_of, settings_option

if TYPE_CHECKING:
    from forcegauge_monitor.grafana_http import Grafana
    from forcegauge_monitor.grafana_steps import Change, Step, Wanted

COLOURS = {"created": "green", "changed": "yellow", "removed": "red", "kept": "magenta"}

Command = Callable[..., None]


@click.group()
def grafana() -> None:
    """Keep forcegauge's dashboards, and its alert rules if wanted, in a Grafana (10 or newer).

    The token is a service account's, from --token-file, FORCEGAUGE_MONITOR_GRAFANA_TOKEN or
    FORCEGAUGE_MONITOR_GRAFANA_TOKEN_FILE. The role Editor does for folder and dashboards, Admin
    for data source, alert rules and where their alerts go.
    """


def _where(command: Command) -> Command:
    for option in (
        settings_option,
        click.option("--token-file", metavar="FILE", help="File of the token."),
        click.option("--url", metavar="URL", help="Grafana's, with its sub-path where it has one."),
    ):
        command = option(command)
    return command


def _what(command: Command) -> Command:
    for option in (
        click.option("--overwrite", is_flag=True, help="Also what somebody edited in Grafana."),
        click.option("--webhook", metavar="URL", help="Send the alerts there: one route of ours."),
        click.option("--runbooks", metavar="URL", help="Where the alerts' links to runbooks lead."),
        click.option("--datasource", metavar="UID", help="Of the Prometheus that rules ask."),
        click.option("--alerts", is_flag=True, help="Also alert rules that Grafana evaluates."),
        click.option("--prometheus", metavar="URL", help="Also a data source of this Prometheus."),
    ):
        command = option(command)
    return command


@grafana.command()
@_where
@_what
def apply(**given: Any) -> None:
    """Make folder and dashboards as they are here, and show what that changes.

    What somebody edited in Grafana is kept, and the exit code is 1 then.
    """
    from forcegauge_monitor.grafana import applying
    from forcegauge_monitor.grafana_steps import settled

    with _opened(given) as there:
        kept = _show(settled(look) for look in applying(there, _wanted(given, there.url)))["kept"]
    if kept:
        raise click.exceptions.Exit(1)


@grafana.command()
@_where
@_what
def diff(**given: Any) -> None:
    """Show what apply would do, and do nothing.

    The exit code is 0 when nothing differs, 1 when something does or Grafana fails.
    """
    from forcegauge_monitor.grafana import applying

    with _opened(given) as there:
        counts = _plan(look() for look in applying(there, _wanted(given, there.url)))
    if set(counts) - {"same"}:
        raise click.exceptions.Exit(1)


@grafana.command()
@_where
@click.option("--overwrite", is_flag=True, help="Also what somebody edited in Grafana.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(yes: bool, **given: Any) -> None:
    """Remove dashboards, alert rules and data source that are ours, after asking.

    The folder goes when nothing else is in it. What somebody edited in Grafana is kept.
    """
    from forcegauge_monitor.grafana import removing
    from forcegauge_monitor.grafana_steps import settled

    with _opened(given) as there:
        counts = _plan(look() for look in removing(there, _wanted(given, there.url)))
        if not counts["removed"]:
            return
        if not yes:
            click.confirm(f"Remove {counts['removed']} of them from {there.url}?", abort=True)
        for look in removing(there, _wanted(given, there.url)):
            settled(look)
    click.echo("Removed.")


@contextmanager
def _opened(given: dict[str, Any]) -> Iterator[Grafana]:
    """The Grafana that is meant; what it refuses or why it is away is one line."""
    from forcegauge_monitor.grafana_http import AwayError, RefusedError, open_grafana, told

    flags = {"grafana_url": given["url"], "grafana_token_file": given["token_file"]}
    try:
        with open_grafana(settings_of(given["file"], **flags)) as there:
            there.check()
            yield there
    except (RefusedError, AwayError) as error:
        raise told(error) from None


def _wanted(given: dict[str, Any], url: str) -> Wanted:
    from forcegauge_monitor.grafana import shipped_dashboards
    from forcegauge_monitor.grafana_http import check_url
    from forcegauge_monitor.grafana_steps import Wanted

    for name in ("prometheus", "webhook", "runbooks"):
        if given.get(name):
            check_url(given[name], f"--{name}", plain=name == "prometheus")
    boards = shipped_dashboards()
    if not boards:
        raise InputError("no dashboard was installed with forcegauge", fix="Install it again")
    names = ("prometheus", "datasource", "webhook", "overwrite")
    told = {name: given[name] for name in names if given.get(name)}
    alerts = partial(_alerts, given["runbooks"], url) if given.get("alerts") else None
    return Wanted(boards, alerts=alerts, **told)


def _alerts(runbooks: str | None, url: str, datasource: str) -> list[dict[str, Any]]:
    from forcegauge_monitor.alert_texts import Places
    from forcegauge_monitor.rules import grafana_groups

    places = Places(grafana=url)
    return grafana_groups(replace(places, runbooks=runbooks) if runbooks else places, datasource)


def _plan(steps: Iterable[Step]) -> Counter[str]:
    """Print what is to be done; how many objects of each state there are."""
    return _show(steps, "to be ")


def _show(steps: Iterable[Step], when: str = "") -> Counter[str]:
    """Print each change when it is known, and then how many there are of each state."""
    counts: Counter[str] = Counter()
    for step in steps:
        for change in step.changes:
            counts[change.state] += 1
            _print(change)
    before = dict.fromkeys(("created", "changed", "removed"), when)
    states = [state for state in (*COLOURS, "same") if counts[state]]
    told = [f"{counts[state]} {before.get(state, '')}{state}" for state in states]
    click.echo(f"{', '.join(told) or 'Nothing of ours is there'}.")
    return counts


def _print(change: Change) -> None:
    state = click.style(f"{change.state:8}", fg=COLOURS.get(change.state))
    note = f": {change.note}" if change.note else ""
    click.echo(f"{state} {change.kind} {change.name}{note}")
    for line in change.lines:
        click.echo(click.style(f"    {line}", fg="red" if line[0] == "-" else "green"))
