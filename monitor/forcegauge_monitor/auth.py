"""Bearer tokens: kept as hashes, compared in constant time, each with a role."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Literal, get_args

from forcegauge.errors import InputError
from forcegauge_monitor.settings import LOOPBACK, Settings

Role = Literal["read", "write"]
"""``write`` may do all that ``read`` may."""

_LINE = re.compile(r"(read|write):([0-9a-f]{64})")
_COMMAND = "forcegauge monitor token"


def new_token(role: Role) -> tuple[str, str]:
    """A new token, and the line that allows it: role and SHA-256, of no use to a thief.

    A fast hash will do: a token has 256 random bits, nobody guesses those.
    """
    token = f"fg_{secrets.token_urlsafe(32)}"
    return token, f"{role}:{_digest(token)}"


class Tokens:
    """The tokens that the settings allow; the file is read anew each time, so that a token can be
    changed without a restart.

    Raises `InputError` for a line that allows none, and where the API would listen beyond this
    machine without any token.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.open = not self._lines()
        if self.open and settings.bind not in LOOPBACK:
            fix = f"Make one with `{_COMMAND}` and name its file by the setting tokens_file"
            problem = f"{settings.bind} is open to others and no token is asked for"
            raise InputError(problem, field="bind", fix=fix)

    def role(self, header: str | None) -> Role | None:
        """The role of an ``Authorization`` header; None for a wrong or missing token."""
        scheme, _, token = (header or "").partition(" ")
        given = _digest(token.strip()) if scheme.lower() == "bearer" else ""
        found: Role | None = None
        for role, digest in self._lines():
            # all are compared, so that the time says nothing about which one came near
            if hmac.compare_digest(digest, given) and found != "write":
                found = role
        return found

    def _lines(self) -> list[tuple[Role, str]]:
        lines = [*self._settings.tokens, *_file_lines(self._settings.tokens_file)]
        return [_parsed(line) for line in lines]


def _file_lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        problem = "cannot be read"
        raise InputError(problem, file=file, field="tokens_file") from None
    found = [stripped for line in lines if (stripped := line.partition("#")[0].strip())]
    if not found:
        raise InputError("holds no token", file=file, fix=f"Make one with `{_COMMAND}`")
    return found


def _parsed(line: str) -> tuple[Role, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        fix = f"Write ROLE:SHA256, as `{_COMMAND}` prints it, one a line"
        raise InputError("a line allows no token", field="tokens", fix=fix)
    role: Role = "write" if match[1] == "write" else "read"
    return role, match[2]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


ROLES: tuple[Role, ...] = get_args(Role)
