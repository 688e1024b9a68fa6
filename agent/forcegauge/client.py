"""Joins the monitor: registers the run, heartbeats, announces what happens.

One daemon thread talks; the training only leaves notes for it. It never waits for the monitor, and
works as well without one: what was noted meanwhile is told once the monitor answers again.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from forcegauge.errors import InputError

logger = logging.getLogger("forcegauge")

HEARTBEAT_SECONDS = 15.0
TIMEOUT_SECONDS = 5.0
"""Of one request."""
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
CLOSING_SECONDS = 2.0
"""The most that the end of a run waits for the monitor."""
KEPT_EVENTS = 1000
SENT_EVENTS = 100
"""In one heartbeat."""
LONGEST_TEXT = 500
LONGEST_ANSWER = 1 << 20

Facts = Mapping[str, Any]

_UNDERSTOOD_NEVER = (400, 413, 422)
_JOINED: dict[str, Client] = {}
# a generator of its own, seeded by the system: python's own belongs to the training
_CHANCE = random.SystemRandom()


def monitor_client(url: str | None) -> Client | None:
    """A client of the monitor at this URL or at `FORCEGAUGE_MONITOR`'s; None without any."""
    found = url or os.environ.get("FORCEGAUGE_MONITOR")
    return Client(found) if found else None


class Client:
    """Tells one monitor of one run, from `join` to `close`.

    The token is `FORCEGAUGE_TOKEN`, or the content of the file `FORCEGAUGE_TOKEN_FILE`, which is
    read each time. Raises `InputError` for a URL that is none, or that holds a password.
    """

    def __init__(self, url: str) -> None:
        self._base = api_url(url)
        self._facts: Facts = {}
        self._look: Callable[[], Facts] = dict
        self._events: dict[str, Facts] = {}
        # reentrant: a signal handler may note the end while the same thread notes something
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._known = False
        self._reason: str | None = None
        self._closing = False
        self._over = False
        self._said: set[object] = set()

    def join(self, facts: Facts, look: Callable[[], Facts]) -> None:
        """Begin to tell: ``facts`` are the run's (run, record_id, ...), ``look`` is asked at each
        heartbeat for its step, verdict, since_step and evidence. Another client that this process
        has for the run is silent from now on; of the same record, what it left untold is told."""
        older = _JOINED.get(facts["run"])
        left = older._leave() if older is not None else {}
        if older is not None and older._facts["record_id"] == facts["record_id"]:
            self._events = {**left, **self._events}
        self._facts, self._look, self._process = {**facts, **_place()}, look, os.getpid()
        self._thread = threading.Thread(target=self._run, name="forcegauge-monitor", daemon=True)
        _JOINED[facts["run"]] = self
        self._thread.start()

    def note(self, kind: str, step: int, facts: Facts) -> None:
        """Leave a line of the record to be told, if it is of a kind that the monitor takes."""
        told = _event(kind, facts)
        if told is None or not self._here:
            return
        key = secrets.token_hex(8)
        with self._lock:
            self._events[key] = {"id": key, "step": step, "time": time.time(), **told}
            while len(self._events) > KEPT_EVENTS:
                self._events.pop(next(iter(self._events)))

    def close(self, reason: str | None) -> None:
        """Tell the end; waits `CLOSING_SECONDS` at most, the thread goes on trying after them.

        Without a reason the run goes on elsewhere: what was noted is told, and no end.
        """
        self._reason, self._closing = reason, True
        if self._thread is not None and self._here:
            self._wake.set()
            self._thread.join(CLOSING_SECONDS)

    def _leave(self) -> dict[str, Facts]:
        """Tell nothing more, not even an end that is still to be told; what was not told yet."""
        self._over = True
        self._wake.set()
        return self._events

    @property
    def _here(self) -> bool:
        # a forked child has the notes, but not the thread
        return self._process in (None, os.getpid())

    def _run(self) -> None:
        failures = 0
        try:
            while not self._over:
                failures = 0 if self._told() else failures + 1
                self._wake.wait(0 if self._over else _pause(failures))
                self._wake.clear()
        except Exception:
            logger.exception("the monitor is told nothing more, training goes on")

    def _told(self) -> bool:
        """Tell everything there is to tell; false where that failed."""
        closing = self._closing
        try:
            self._tell(self._reason if closing else None)
        except (RefusalError, OSError, http.client.HTTPException, ValueError) as error:
            self._known = False
            self._say(error)
            return False
        self._over = self._over or closing
        return True

    def _tell(self, reason: str | None) -> None:
        if not self._known:
            self._post("/runs", self._facts)
            self._known = True
        run = f"/runs/{self._facts['run']}"
        while self._beat(run):
            pass
        if reason is not None:
            self._post(f"{run}/end", {"record_id": self._facts["record_id"], "reason": reason})

    def _beat(self, run: str) -> bool:
        """One heartbeat; whether there are more events than went with it."""
        with self._lock:
            batch = list(islice(self._events.values(), SENT_EVENTS))
        body = {"record_id": self._facts["record_id"], **self._look(), "events": batch}
        try:
            accepted = self._post(f"{run}/heartbeat", body).get("accepted") or ()
        except RefusalError as refusal:
            if batch and refusal.status in _UNDERSTOOD_NEVER:
                self._forget([event["id"] for event in batch])
            raise
        self._forget(accepted)
        return bool(accepted) and bool(self._events)

    def _forget(self, ids: Any) -> None:
        with self._lock:
            for key in ids:
                self._events.pop(str(key), None)

    def _post(self, path: str, body: Facts) -> dict[str, Any]:
        return call("POST", f"{self._base}{path}", body)

    def _say(self, error: Exception) -> None:
        kind = error.status if isinstance(error, RefusalError) else type(error)
        if kind not in self._said and not self._over:
            self._said.add(kind)
            problem = getattr(error, "reason", error)
            logger.warning("monitor %s: %s. Training goes on", self._base, problem)


def call(method: str, url: str, body: Facts | None = None) -> dict[str, Any]:
    """One request to a monitor, with the token of the environment, and its answer.

    Raises `RefusalError` for a status other than success, `OSError`, `http.client.HTTPException`
    and `ValueError` where no monitor answers.
    """
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(url, data, _headers(), method=method)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return _object(answer.read(LONGEST_ANSWER))
    except urllib.error.HTTPError as error:
        with error:
            raise RefusalError(error.code, error.read(LONGEST_ANSWER)) from None


class RefusalError(Exception):
    """What an HTTP status other than success says, in one line."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        try:
            told = _object(body)
        except ValueError:
            told = {}
        detail = str(told.get("detail") or told.get("title") or "")[:LONGEST_TEXT]
        super().__init__(
            " ".join(f"{_HINTS.get(status, 'answers')} (HTTP {status}) {detail}".split())
        )


_HINTS = {
    401: "the token is missing or wrong (FORCEGAUGE_TOKEN, FORCEGAUGE_TOKEN_FILE)",
    403: "the token does not allow to write",
    409: "another run of this name is alive, choose another name (run=)",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to wherever it leads."""

    def redirect_request(self, *_: object) -> None:
        """Follow none: the status is the error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def api_url(url: str) -> str:
    """Where the API of a monitor is; raises `InputError` for a URL that cannot be one."""
    fix = "Use a URL such as http://monitor:8790"
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        known = None
    if not known or any(letter.isspace() for letter in url):
        raise InputError("that is no monitor's URL", field="monitor", fix=fix)
    if "@" in parts.netloc or parts.query or parts.fragment:
        fix = "Leave it at host and port, and put the token into FORCEGAUGE_TOKEN"
        raise InputError("the monitor's URL holds more than its place", field="monitor", fix=fix)
    return f"{url.rstrip('/')}/api/v1"


def _headers() -> dict[str, str]:
    token = os.environ.get("FORCEGAUGE_TOKEN", "")
    if not token and (path := os.environ.get("FORCEGAUGE_TOKEN_FILE")):
        token = Path(path).read_text(encoding="utf-8")
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token holds characters that no token has")
    known = {"Authorization": f"Bearer {token}"} if token else {}
    return {"Content-Type": "application/json", "Accept": "application/json", **known}


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("what answers there is no monitor")
    return found


def _place() -> dict[str, str]:
    names = ("cluster", "namespace")
    return {name: os.environ.get(f"FORCEGAUGE_{name.upper()}", "") for name in names}


def _pause(failures: int) -> float:
    if not failures:
        return HEARTBEAT_SECONDS
    longest = min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
    return longest * _CHANCE.uniform(0.5, 1.0)


def _event(kind: str, facts: Facts) -> dict[str, str] | None:
    if kind == "run":
        return {"kind": "phase", "text": str(facts["phase"]), "path": ""}
    if kind == "checkpoint":
        text = "healthy" if facts["healthy"] else "an alarm is on"
        return {"kind": kind, "text": text, "path": str(Path(facts["path"]).absolute())}
    if kind not in ("alarm", "verdict"):
        return None
    head = facts["verdict"] if kind == "verdict" else f"{facts['alarm']} {_ON[facts['on']]}"
    return {"kind": kind, "text": f"{head}. {facts['evidence']}"[:LONGEST_TEXT], "path": ""}


_ON = {True: "is on", False: "is off"}


def reachable_address(bind: str, port: int) -> str:
    """``host:port`` at which Prometheus finds this process's metrics.

    `FORCEGAUGE_ADDRESS` (host, or host and port) goes first; an endpoint on all addresses is
    named by the host's name.
    """
    told = os.environ.get("FORCEGAUGE_ADDRESS", "")
    host = told or (socket.gethostname() if bind in ("0.0.0.0", "::") else bind)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return host if ":" in host else f"{host}:{port}"
    return f"[{host}]:{port}" if version == 6 else f"{host}:{port}"
