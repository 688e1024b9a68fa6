"""What goes wrong, as problem+json (RFC 9457): one sentence, and never an input's value."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from forcegauge.errors import InputError
from forcegauge_monitor.store import TakenError, Unavailable, UnknownRunError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5

_SCHEMA = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
    }
    for status in (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503)
}
"""For the OpenAPI: every answer that is not the wanted one."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """One problem; 429 and 503 say when to come again."""
    title = HTTPStatus(status).phrase
    again = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, {**again, **(headers or {})}, media_type=MEDIA_TYPE)


def add_problems(app: FastAPI) -> None:
    """Have the application answer every error as a problem."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _bad_input)
    app.add_exception_handler(TakenError, _taken)
    app.add_exception_handler(UnknownRunError, _unknown)
    app.add_exception_handler(Unavailable, _away)
    app.add_exception_handler(Exception, _broken)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return problem(422, f"{place}: {first['msg']}" if place else str(first["msg"]))


def _bad_input(request: Request, error: Exception) -> JSONResponse:
    return problem(422, str(error))


def _taken(request: Request, error: Exception) -> JSONResponse:
    return problem(409, f"Another record of the run {error} is live.")


def _unknown(request: Request, error: Exception) -> JSONResponse:
    return problem(404, f"No run {error} is known; register it first.")


def _away(request: Request, error: Exception) -> JSONResponse:
    return problem(503, "The store cannot be reached just now; nothing was changed.")


def _broken(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "The monitor failed; its log says why.")
