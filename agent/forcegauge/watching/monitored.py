"""Watches a run that a monitor knows: its verdict, and the metrics of its agent within reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from forcegauge.alarms import ALARMS
from forcegauge.client import RefusalError, api_url, call
from forcegauge.detectors import ADVICE
from forcegauge.errors import InputError, RunError
from forcegauge.reporting.safe import plain
from forcegauge.reporting.story import field
from forcegauge.watching.scraping import OUT_OF_REACH, Agent, fetch
from forcegauge.watching.view import View
from forcegauge.watching.words import probe_line

REFUSED = (400, 401, 403, 404, 422)
"""What the user can mend."""
LISTED = 20

_ADVICE = {**ADVICE, **{row.name: row.advice for row in ALARMS}}


class Monitored:
    """Asks a monitor for one run, and scrapes that run's agent.

    The token is the client's: `FORCEGAUGE_TOKEN`, `FORCEGAUGE_TOKEN_FILE`. Raises `InputError` for
    a run that is not there and a token that is not taken, `RunError` where no monitor answers.
    """

    def __init__(self, url: str, run: str | None) -> None:
        self._url, self._api = url, api_url(url)
        if run is None:
            raise InputError("a monitor has many runs", field="--run", fix=self._names())
        self._run = run
        self._agent: Agent | None = None
        self._failed = ""
        self._page = self._ask(f"/runs/{run}")

    def views(self) -> Iterator[View]:
        """Ask once more; while the monitor is away, what it said last is shown."""
        try:
            self._page, self._failed = self._ask(f"/runs/{self._run}"), ""
        except (RunError, InputError) as error:
            self._failed = str(error)
        yield self._view()

    def _view(self) -> View:
        run, notes = self._page["run"], [self._failed] if self._failed else []
        base = self._scraped(str(run.get("address") or ""))
        if base is None:
            base = View(name=self._run, model=str(run.get("model") or ""))
            notes.append("The agent's metrics are out of reach: this is what the monitor knows.")
        if run.get("state") == "stale":
            notes.append("The monitor has not heard of the run for a while.")
        verdict, since = str(run.get("verdict") or ""), run.get("since_step")
        evidence = str(run.get("evidence") or base.evidence)
        advice = base.advice if base.verdict == verdict else _ADVICE.get(verdict, "")
        return replace(
            base,
            verdict=verdict,
            since=since if isinstance(since, int) else None,
            evidence=evidence,
            advice=advice,
            step=base.step if base.step is not None else run.get("step"),
            heard=base.heard or run.get("seen"),
            checkpoint=_checkpoint(self._page, verdict, since),
            ended=str(run.get("reason") or "ended") if run.get("state") == "ended" else None,
            notes=[*base.notes, *notes],
            lines=base.lines or [_line(run)],
        )

    def _scraped(self, address: str) -> View | None:
        """By the agent's own page, or the monitor's, where a folder of checkpoints is watched."""
        url = f"http://{address}" if address else self._url
        try:
            self._agent = self._agent or Agent(url, self._run)
        except (RunError, InputError):
            return None
        *_, view = self._agent.views()
        return view

    def _ask(self, path: str) -> Mapping[str, Any]:
        try:
            return call("GET", f"{self._api}{path}")
        except RefusalError as refusal:
            if refusal.status == 404:
                problem = f"the monitor knows no run '{self._run}'"
                raise InputError(problem, field="--run", fix=self._names()) from None
            kind = InputError if refusal.status in REFUSED else RunError
            raise kind(f"the monitor at {self._url} says: {refusal}") from None
        except OUT_OF_REACH as error:
            reason = getattr(error, "reason", None) or error
            raise RunError(f"no monitor answers at {self._url} ({plain(reason)})") from None

    def _names(self) -> str:
        found = self._ask(f"/runs?limit={LISTED}")
        names = [plain(field(run, "run")) for run in found.get("runs") or ()]
        more = found.get("total", 0) - len(names)
        rest = f" and {more} more" if more > 0 else ""
        return f"Name one of: {', '.join(names)}{rest}" if names else "It knows no run yet"


def is_monitor(url: str) -> bool:
    """Whether a monitor answers there, not an agent. No token is shown to whoever it is.

    Raises `InputError` for a URL that is none, `RunError` where nobody answers.
    """
    api_url(url)
    # an agent answers every path with its metrics
    return fetch(f"{url.rstrip('/')}/healthz").lstrip().startswith("{")


def _checkpoint(page: Mapping[str, Any], verdict: str, since: object) -> str:
    """The last checkpoint that was healthy and is older than what is wrong now."""
    saved = [event for event in page.get("events") or () if event.get("kind") == "checkpoint"]
    healthy = [event for event in saved if event.get("text") == "healthy"]
    if verdict not in ADVICE and isinstance(since, int):
        healthy = [event for event in healthy if event["step"] < since]
    if not healthy:
        return ""
    last = max(healthy, key=lambda event: event["step"])
    return f"The last healthy checkpoint is {last.get('path')}, of step {last['step']}."


def _line(run: Mapping[str, Any]) -> tuple[int, str]:
    step = int(run.get("step") or 0)
    return step, probe_line(step, str(run.get("verdict")), run.get("since_step"), {}, None)
