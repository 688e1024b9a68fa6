"""What every request passes before it is read: rate, token, size."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forcegauge.errors import InputError
from forcegauge_monitor.auth import Tokens
from forcegauge_monitor.problems import problem
from forcegauge_monitor.settings import LOOPBACK, Settings

BODY_SECONDS = 30.0
"""A client that sends its request no faster is let go."""

KNOWN_CLIENTS = 10_000

_PAGES = ("/metrics", "/sd/", "/runbooks/")
_HEALTH = ("/healthz", "/readyz")
_READING = ("GET", "HEAD", "OPTIONS")


class Rate:
    """A token bucket for each client: ``burst`` at once, then ``per_second``; 0 is no limit."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Whether one more request of this client is within its rate."""
        if not self._per_second:
            return True
        now = self._clock()
        left, then = self._left.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._per_second)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > KNOWN_CLIENTS:
            self._left.popitem(last=False)
        return left >= 1


class Guard:
    """ASGI: refuses what is too much, not allowed or too large, before the application sees it."""

    def __init__(self, app: ASGIApp, settings: Settings, seen: Callable[[int], None]) -> None:
        self._app, self._settings, self._seen = app, settings, seen
        self._tokens = Tokens(settings)
        self._rate = Rate(settings.requests_per_second, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; ``seen`` is told the status of its answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._seen(message["status"])
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, counted)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(receive, self._settings.max_body_bytes)
        except TimeoutError:
            return await problem(408, "The request came too slowly.")(scope, receive, counted)
        if body is None:
            text = f"A request has at most {self._settings.max_body_bytes} bytes."
            answer = problem(413, text, {"Connection": "close"})
            return await answer(scope, receive, counted)
        try:
            return await self._app(scope, _replayed(body, receive), counted)
        except Exception:
            # it is answered outside of here
            self._seen(500)
            raise

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in _HEALTH:
            return None
        client = scope["client"][0] if scope.get("client") else ""
        if not self._rate.allows(client):
            return problem(429, "Too many requests from this address.")
        if _too_large(headers, self._settings.max_body_bytes):
            text = f"A request has at most {self._settings.max_body_bytes} bytes."
            return problem(413, text, {"Connection": "close"})
        closed = path.startswith("/api/") or (
            self._settings.protect_pages and path.startswith(_PAGES)
        )
        return self._unauthorized(scope["method"], headers) if closed else None

    def _unauthorized(self, method: str, headers: Headers) -> JSONResponse | None:
        if self._tokens.open:
            return _foreign(headers)
        try:
            role = self._tokens.role(headers.get("authorization"))
        except InputError:
            return problem(503, "The tokens cannot be read just now.")
        if role is None:
            text = "A bearer token is needed, and this is none that is known."
            return problem(401, text, {"WWW-Authenticate": "Bearer"})
        if role == "read" and method not in _READING:
            return problem(403, "This token may read only.")
        return None


def _foreign(headers: Headers) -> JSONResponse | None:
    # without tokens a page in a browser must not reach the API by a name of its own
    name = urlsplit(f"//{headers.get('host', '')}").hostname
    if name in LOOPBACK:
        return None
    return problem(403, "Without tokens the API answers to this machine's own names only.")


def _too_large(headers: Headers, limit: int) -> bool:
    told = headers.get("content-length", "0")
    return told.isdecimal() and int(told) > limit


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when it is larger than the limit."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
