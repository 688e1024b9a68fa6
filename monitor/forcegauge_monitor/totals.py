"""All that the monitor exports, from the same moment of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forcegauge_monitor.records import Worker

EXPORTED = (
    "entk_norm",
    "entk_alignment_ratio",
    "attribution_nats",
    "predicted_change_nats",
    "prediction_r2_ratio",
)
"""The numbers of a snapshot that are exported; the rest stays with the snapshot."""


@dataclass(frozen=True)
class Overview:
    """All that is exported, from the same moment.

    ``beat`` is when one last did its chores, in Unix time, None where none ever did; ``verdicts``
    is by run; ``results`` by run: step and numbers of its last snapshot; ``counts`` by run and
    state the snapshots that ended so; ``stages`` by run and id the open ones: queue, state, pieces
    done and in all; ``scores`` by run the metrics of a folder that is watched: name, label values
    and value of each.
    """

    known: int
    live: int
    ended: int
    failed: int
    beat: float | None
    verdicts: Mapping[str, str]
    results: Mapping[str, tuple[int, dict[str, Any]]]
    counts: Mapping[tuple[str, str], int]
    stages: Mapping[tuple[str, str], tuple[str, str, int, int]]
    workers: Sequence[Worker]
    scores: Mapping[str, list[tuple[str, list[str], float]]]


def result(text: str) -> tuple[int, dict[str, Any]]:
    """Step and numbers of a snapshot, as the store's scripts write them."""
    step, _, numbers = text.partition("|")
    return int(step), json.loads(numbers)


def stage(text: str) -> tuple[str, str, int, int]:
    """Queue, state, pieces done and in all of an open snapshot, likewise."""
    queue, state, done, total = text.split("|")
    return queue, state, int(done), int(total)
