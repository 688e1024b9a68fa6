"""Serves a `Double` over real HTTP, and lets go wrong what is to go wrong."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.monitor.grafana_double import READER, ROUTES, TOKEN, Answer, Double, no

_BY_PROVENANCE = ("delete_rule", "put_group", "post_contact", "put_contact", "put_policies")


class _Handler(BaseHTTPRequestHandler):
    double: Double
    prefix: str
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        with self.double.lock:
            fault = self._fault()
            self.double.asked.append((self.command, self.path))
            answer = self._answered(body) if fault in ("pass", "lose") else None
        if fault in ("drop", "lose"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            self.double.released.wait(60)
            self.close_connection = True
        elif answer is not None:
            self._send(answer[0], json.dumps(answer[1]).encode() if answer[0] != 204 else b"")
        elif fault == "page":
            self._send(200, b"<html>a message to log in</html>")
        else:
            self._send(int(fault), b"<html>the message of a proxy</html>")

    do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815

    def _fault(self) -> int | str:
        return self.double.faults.pop(0) if self.double.faults else "pass"

    def _answered(self, body: Any) -> Answer:
        parts = urlsplit(self.path)
        if not parts.path.startswith(f"{self.prefix}/api/"):
            return no(404, "Not found")
        place = parts.path.removeprefix(f"{self.prefix}/api")
        if refused := self._refused(place):
            return refused
        for pattern, methods in ROUTES.items():
            if (found := re.fullmatch(pattern, place)) and self.command in methods:
                work = methods[self.command]
                header = "" if "X-Disable-Provenance" in self.headers else "api"
                more = {"provenance": header} if work.__name__ in _BY_PROVENANCE else {}
                return work(self.double, body, parse_qs(parts.query), *found.groups(), **more)
        return no(404, "Not found")

    def _refused(self, place: str) -> Answer | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if place == "/health" or given == TOKEN:
            return None
        if given != READER:
            return no(401, "Invalid API key")
        if self.command == "GET":
            return None
        message = "You'll need additional permissions to perform this action"
        return no(403, f"{message}. Permissions needed: folders:create", title="Access denied")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if 300 <= status < 400:
            self.send_header("Location", "https://login.example/?from=here")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def grafana_double(
    version: str = "12.3.0", prefix: str = "/grafana", context: SSLContext | None = None
) -> Iterator[tuple[Double, str]]:
    """A running double and its URL, sub-path included; of TLS with a context."""
    double = Double(version)
    handler = type("Handler", (_Handler,), {"double": double, "prefix": prefix})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "http" if context is None else "https"
        yield double, f"{scheme}://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        double.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here."""
