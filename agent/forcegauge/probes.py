"""Probe sets: prompts with fixed responses, and the roles that responses can have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcegauge.errors import InputError

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

Prompt = str | tuple[Mapping[str, str], ...]
"""Plain text, or chat messages of ``role`` and ``content``."""


@dataclass(frozen=True)
class Probe:
    """One prompt with several fixed responses, by response type."""

    id: str
    prompt: Prompt
    responses: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """The probe as it stands in a probe file."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt]
        return {"id": self.id, "prompt": prompt, "responses": dict(self.responses)}


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
        raise InputError("not implemented")

    def save(self, path: str | Path) -> None:
        """Write the probe file, whole or not at all."""


def probe_set(probes: Iterable[Probe]) -> ProbeSet:
    """A probe set of these probes."""
    return ProbeSet(tuple(probes))
