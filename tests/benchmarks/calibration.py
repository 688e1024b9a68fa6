"""Recorded finetunes as the calibration bench sees them, and what became of each.

The outcome is read from held-out prompts that no probe and no detector sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).with_name("records")

HARM_NATS = 0.25
"""Nats per token that held-out chosen answers lose in a harmed run. Set by the outcomes alone and
before the slow runs were recorded: no run ends between -0.12 and -0.27."""
REPEATS = 0.3
"""Share of repeated n-grams in greedy outputs on held-out prompts of a repeating run."""

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded finetune: its settings, and its rows in the order of steps. Equal only to
    itself, so that what was computed from it can be kept."""

    name: str
    config: Row
    probes: tuple[Row, ...]
    steps: tuple[Row, ...]
    held_out: tuple[Row, ...]
    harm: float = HARM_NATS

    @property
    def configuration(self) -> tuple[Any, ...]:
        """What runs of several seeds have in common."""
        return tuple(v for k, v in self.config.items() if k not in ("kind", "name", "seed"))

    @property
    def change(self) -> float:
        """What held-out chosen answers gained or lost by the end, nats per token."""
        return float(self.held_out[-1]["chosen_nats"] - self.held_out[0]["chosen_nats"])

    @property
    def length(self) -> int:
        """Optimizer steps."""
        return int(self.config["steps"])

    @cached_property
    def turn(self) -> int | None:
        """The first held-out look from which on the run stays harmed; None for a healthy one."""
        turned = None
        for row in self.held_out:
            if not self._bad(row):
                turned = None
            elif turned is None:
                turned = row["step"]
        return turned

    @property
    def outcome(self) -> str:
        """``healthy``, ``harmed`` or ``repeating``, by the last held-out look."""
        if self.turn is None:
            return "healthy"
        return "repeating" if self._repeats(self.held_out[-1]) else "harmed"

    def _bad(self, row: Row) -> bool:
        start = self.held_out[0]["chosen_nats"]
        return self._repeats(row) or not row["chosen_nats"] > start - self.harm

    def _repeats(self, row: Row) -> bool:
        return bool(row["repetition"] > self.held_out[0]["repetition"] + REPEATS)

    def thinned(self, every: int) -> Run:
        """The same run probed less often: every ``every``-th probe, and the last."""
        last = len(self.probes) - 1
        kept = (p for n, p in enumerate(self.probes) if n % every == 0 or n == last)
        return replace(self, probes=tuple(kept))


def load(path: Path) -> Run:
    """One fixture."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {k: tuple(r for r in rows if r["kind"] == k) for k in ("probe", "step", "held_out")}
    config = rows[0]
    return Run(config["name"], config, kinds["probe"], kinds["step"], kinds["held_out"])


def recorded() -> list[Run]:
    """All fixtures, by name."""
    return [load(path) for path in sorted(RECORDS.glob("*.jsonl"))]
