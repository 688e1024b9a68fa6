"""One Grafana's HTTP API: token, retries, and what its answers mean in one line.

The requests go through `grafana_api`'s low-level client, which reaches every endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from grafana_api.grafana_face import GrafanaFace

from forcegauge.errors import InputError, RunError
from forcegauge_monitor.settings import Settings

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before the second and every further attempt at a request that may succeed later."""

TIMEOUT_SECONDS = 30.0
LONGEST_MESSAGE = 300

OLDEST = 10
"""Version of Grafana."""

_LATER = (429, 500, 502, 503, 504)

_HINTS = {
    401: "the token is wrong, expired or of another Grafana",
    403: "the token does not allow this",
    404: "there is no such thing here: is that the address of a Grafana, with its sub-path?",
    409: "somebody else changed it just now, or it exists already, or is in use",
    412: "somebody else changed it just now, or its name is taken",
    429: "Grafana answers too many requests",
}


class RefusedError(Exception):
    """An HTTP status other than success, in one line; ``status`` is its number."""

    def __init__(self, status: int, place: str, message: str) -> None:
        self.status = status
        hint = _HINTS.get(status, "Grafana fails" if status >= 500 else "Grafana refuses")
        super().__init__(f"{place}: {hint} (HTTP {status}) {message}".rstrip())


class AwayError(Exception):
    """No Grafana answers; one line why."""


class Grafana:
    """A Grafana at its URL, sub-path included. Close it, or use it as a context manager.

    ``pauses`` are the seconds before each further attempt while it is away or overloaded.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        pauses: Sequence[float] | None = None,
    ) -> None:
        self._token, self._timeout = token, timeout
        self._pauses = PAUSES if pauses is None else pauses
        parts = urlsplit(check_url(url, "grafana_url"))
        prefix = parts.path.strip("/")
        face = GrafanaFace(
            auth=token,
            host=parts.netloc,
            url_path_prefix=f"{prefix}/" if prefix else "",
            protocol=parts.scheme,
            timeout=timeout,
        )
        self.url = url.rstrip("/")
        self._api = face.api
        # before the library reads the error's body, which fails on a page, and before a redirect
        # is followed, which would turn a POST into a GET
        self._api.s.hooks["response"].append(self._check)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._api.s.close()

    def check(self) -> None:
        """Raise `InputError` where the version is older than 10; some hide their version."""
        health = self.call("GET", "/health")
        version = str(health.get("version", "")) if isinstance(health, dict) else ""
        major = version.partition(".")[0]
        if major.isdigit() and int(major) < OLDEST:
            fix = f"forcegauge needs {OLDEST} or newer"
            raise InputError(f"this Grafana is {version}", field=self.url, fix=fix)

    def find(self, path: str) -> Any:
        """What is at a path; None where nothing is."""
        try:
            return self.call("GET", path)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def drop(self, path: str) -> None:
        """Delete what is at a path; nothing there is as good."""
        try:
            self.call("DELETE", path)
        except RefusedError as error:
            if error.status != 404:
                raise

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """A request to ``/api`` + path, and the JSON of its answer; None for an empty one.

        Tried again while Grafana is away or overloaded. Raises `RefusedError`, `AwayError`, and
        `InputError` where something else answers.
        """
        for pause in self._pauses:
            try:
                return self._once(method, path, body, headers)
            except RefusedError as error:
                if error.status not in _LATER:
                    raise
            except AwayError:
                pass
            time.sleep(pause)
        return self._once(method, path, body, headers)

    def _once(self, method: str, path: str, body: Any, headers: dict[str, str] | None) -> Any:
        try:
            return getattr(self._api, method)(path, json=body, headers=headers)
        except requests.exceptions.JSONDecodeError as error:
            # a DELETE of an alert rule answers 204
            if not error.doc:
                return None
            fix = "Give the address of a Grafana, with its sub-path"
            raise InputError("what answers there is no Grafana", field=self.url, fix=fix) from None
        except requests.exceptions.SSLError as error:
            fix = "REQUESTS_CA_BUNDLE names a file of further authorities"
            problem = f"TLS fails ({_reason(error)})"
            raise InputError(problem, field=self.url, fix=fix) from None
        except requests.exceptions.Timeout:
            raise AwayError(f"{self.url}: no answer within {self._timeout:g} s") from None
        except requests.exceptions.RequestException as error:
            raise AwayError(f"{self.url}: no Grafana answers ({_reason(error)})") from None

    def _check(self, response: requests.Response, *_: Any, **__: Any) -> None:
        place = self._place(str(response.request.method), response.request.path_url)
        if 300 <= response.status_code < 400:
            where = response.headers.get("Location", "elsewhere").partition("?")[0]
            raise RefusedError(response.status_code, place, f"It leads to {where}: give that URL.")
        if response.status_code >= 400:
            message = _message(response).replace(self._token, "***")
            raise RefusedError(response.status_code, place, message)

    def _place(self, method: str, path: str) -> str:
        return f"{self.url}: {method} {path.partition('?')[0]}"


def open_grafana(settings: Settings, **options: Any) -> Grafana:
    """The Grafana of the settings; raises `InputError` where its URL or its token is missing."""
    if not settings.grafana_url:
        fix = "Set FORCEGAUGE_MONITOR_GRAFANA_URL, or give --url"
        raise InputError("no Grafana is named", field="grafana_url", fix=fix)
    return Grafana(settings.grafana_url, _token(settings), **options)


def _token(settings: Settings) -> str:
    token, file = settings.grafana_token, settings.grafana_token_file
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise InputError(f"cannot be read ({reason})", file=file) from None
    token = token.strip()
    if not token:
        fix = "Set FORCEGAUGE_MONITOR_GRAFANA_TOKEN or ..._TOKEN_FILE, or give --token-file"
        raise InputError("Grafana's token is missing", field="grafana_token", fix=fix)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError("holds characters that no token has", field="grafana_token", file=file)
    return token


def check_url(url: str, field: str, *, plain: bool = True) -> str:
    """The URL, where it is one of HTTP, and a plain one holds no password or query.

    Raises `InputError` otherwise.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        known = None
    if not known or any(letter.isspace() for letter in url):
        fix = "Use a URL such as https://host/grafana"
        raise InputError("that is no URL of a server", field=field, fix=fix)
    if plain and ("@" in parts.netloc or parts.query or parts.fragment):
        fix = "Leave it at host, port and path"
        raise InputError("the URL holds more than its place", field=field, fix=fix)
    return url


def told(error: RefusedError | AwayError) -> InputError | RunError:
    """The error as the command line tells it: what the user can mend, or what failed."""
    if isinstance(error, RefusedError) and error.status < 500 and error.status not in (409, 412):
        return InputError(str(error))
    return RunError(f"{error}".rstrip(".") + ".")


def _message(response: requests.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    message = body.get("message") if isinstance(body, dict) else ""
    return " ".join(str(message or "").split())[:LONGEST_MESSAGE]


def _reason(error: Exception) -> str:
    """The innermost of the reasons that requests and urllib3 wrap into each other."""
    inner: Any = error
    while True:
        more = getattr(inner, "reason", None) or (getattr(inner, "args", None) or (None,))[-1]
        if not isinstance(more, Exception):
            return str(more if isinstance(more, str) else inner).rpartition(": ")[2]
        inner = more
