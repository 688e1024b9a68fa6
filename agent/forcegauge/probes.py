"""Probe sets: prompts with fixed responses, and the roles that responses can have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from forcegauge.errors import InputError
from forcegauge.textfiles import read_lines, write_whole

RESPONSE_TYPES = (
    "chosen",
    "rejected",
    "chosen_rephrase",
    "rejected_rephrase",
    "chosen_offtopic",
    "rejected_offtopic",
    "other_prompt",
    "unseen_prompt",
    "unrelated",
    "shuffled",
    "random_words",
    "greedy",
)
"""Every response type, in the order in which people read them."""

UNTRAINED_NATURAL = (
    "chosen_rephrase",
    "rejected_rephrase",
    "chosen_offtopic",
    "rejected_offtopic",
    "other_prompt",
    "unseen_prompt",
    "unrelated",
)
"""Natural text that no training example pulls up for its probe's prompt."""

FILE_TYPES = tuple(name for name in RESPONSE_TYPES if name != "greedy")
"""Response types of a probe file: the model itself makes `greedy` at a run's first baseline."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of the messages in a prompt."""

Prompt = str | tuple[Mapping[str, str], ...]
"""Plain text, or chat messages of ``role`` and ``content``."""


@dataclass(frozen=True)
class Probe:
    """One prompt with several fixed responses, by response type."""

    id: str
    prompt: Prompt
    responses: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """The probe as it stands in a probe file: neither file nor hash hold `greedy`."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt]
        responses = {name: text for name, text in self.responses.items() if name != "greedy"}
        return {"id": self.id, "prompt": prompt, "responses": responses}


@dataclass(frozen=True)
class ProbeSet:
    """Probes that are scored together; the hash is part of every result."""

    probes: tuple[Probe, ...]

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def types(self) -> tuple[str, ...]:
        """Response types that occur, in the order of `RESPONSE_TYPES`."""
        present = {name for probe in self.probes for name in probe.responses}
        return tuple(name for name in RESPONSE_TYPES if name in present)

    @property
    def hash(self) -> str:
        """SHA-256 of the probes as canonical JSON, sorted by id (hexadecimal)."""
        probes = sorted((probe.as_json() for probe in self.probes), key=lambda row: str(row["id"]))
        text = json.dumps(probes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> ProbeSet:
        """Read a probe file (JSONL); raises `InputError` naming file, line, field and fix."""
        return cls(tuple(probe for _, probe in numbered_probes(path)))

    def save(self, path: str | Path) -> None:
        """Write the probe file, whole or not at all."""
        rows = (json.dumps(probe.as_json(), ensure_ascii=False) for probe in self.probes)
        write_whole(path, "".join(f"{row}\n" for row in rows))


def numbered_probes(path: str | Path) -> list[tuple[int, Probe]]:
    """Line number and probe of each line of a probe file; blank lines are skipped.

    Raises `InputError` naming file, line, field and fix.
    """
    lines_by_id: dict[str, int] = {}
    probes = []
    for line, text in _filled_lines(path):
        try:
            probe = _probe(_strict_json(text))
            first = lines_by_id.setdefault(probe.id, line)
            if first != line:
                _refuse(f"'{probe.id}' was already used on line {first}", "id", "Use each id once")
        except _LineError as error:
            raise InputError(
                error.problem, fix=error.fix, file=path, line=line, field=error.field
            ) from None
        probes.append((line, probe))
    if not probes:
        raise InputError("holds no probes", fix="Write one JSON object a line", file=path)
    return probes


def _filled_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in read_lines(path) if text.strip())


class _LineError(Exception):
    """What is wrong with one line, before file and line are known."""

    def __init__(self, problem: str, field: str | None, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.field, self.fix = problem, field, fix


def _refuse(problem: str, field: str | None = None, fix: str = "") -> NoReturn:
    raise _LineError(problem, field, fix)


def _strict_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        _refuse(f"bad JSON ({error.msg} at column {error.colno})", None, "One JSON object a line")
    except RecursionError:
        _refuse("bad JSON (nested too deeply)", None, "One JSON object a line")
    except ValueError as error:
        _refuse(f"bad JSON ({error})", None, "One JSON object a line")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            _refuse("the key stands twice in one object", _shown(key), "Keep one of them")
        row[key] = value
    return row


def _no_constant(name: str) -> NoReturn:
    _refuse(f"bad JSON ({name} is not JSON)", None, "Remove it")


def _probe(row: Any) -> Probe:
    if not isinstance(row, dict):
        fix = 'Write {"id": ..., "prompt": ..., "responses": {...}} on each line'
        _refuse(f"is {_kind(row)}, not a JSON object", None, fix)
    _known_keys(row, ("id", "prompt", "responses"), "")
    return Probe(_text(row, "id"), _prompt(row["prompt"]), _responses(row["responses"]))


def _known_keys(row: Mapping[str, Any], keys: tuple[str, ...], inside: str) -> None:
    for key in row:
        if key not in keys:
            _refuse("unknown key", inside + _shown(key), f"Keys are {', '.join(keys)}")
    for key in keys:
        if key not in row:
            _refuse("is missing", inside + key, f"Keys are {', '.join(keys)}")


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return _text({"prompt": value}, "prompt")
    if not isinstance(value, list):
        _refuse(f"is {_kind(value)}", "prompt", "Give text or a list of messages")
    if not value:
        _refuse("is an empty list", "prompt", "Give at least one message")
    return tuple(_message(message, f"prompt[{index}]") for index, message in enumerate(value))


def _message(value: Any, field: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        fix = 'A message is {"role": ..., "content": ...}'
        _refuse(f"is {_kind(value)}, not a message", field, fix)
    _known_keys(value, ("role", "content"), f"{field}.")
    role = _text(value, "role", f"{field}.")
    if role not in ROLES:
        _refuse(f"unknown role '{_shown(role)}'", f"{field}.role", f"Roles are {', '.join(ROLES)}")
    return {"role": role, "content": _text(value, "content", f"{field}.")}


def _responses(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        _refuse(f"is {_kind(value)}", "responses", 'Give {"chosen": "...", ...}')
    for name in value:
        if name == "greedy":
            fix = "Remove it: the model makes the greedy texts at a run's first baseline"
            _refuse("cannot be given in a probe file", "responses.greedy", fix)
        if name not in FILE_TYPES:
            fix = f"Response types are {', '.join(FILE_TYPES)}"
            _refuse("unknown response type", f"responses.{_shown(name)}", fix)
    if "chosen" not in value:
        _refuse("is missing", "responses.chosen", "Every probe needs its chosen response")
    return {name: _text(value, name, "responses.") for name in value}


def _text(row: Mapping[str, Any], key: str, inside: str = "") -> str:
    value = row[key]
    problem = f"is {_kind(value)}, not text" if not isinstance(value, str) else unfit_text(value)
    if problem:
        _refuse(problem, inside + key, "Give some text or leave the probe out")
    return str(value)


def unfit_text(text: str) -> str:
    """Why this text cannot be scored, or an empty string if it can."""
    if not text.strip():
        return "is only white space" if text else "is empty"
    if "\0" in text:
        return "holds a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half a surrogate pair, which is no character"
    return ""


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _shown(key: str) -> str:
    """A key as it can be printed: short, and without line breaks or broken characters."""
    return ascii(key[:40])[1:-1] if not key.isprintable() or len(key) > 40 else key
