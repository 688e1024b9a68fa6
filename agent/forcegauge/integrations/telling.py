"""What a callback tells of each probe: a line in the training log, numbers for trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from forcegauge.alarms import VERDICTS
from forcegauge.catalogue import PREFIX
from forcegauge.detectors import Judgement
from forcegauge.exporter import Snapshot
from forcegauge.gauge import ForceGauge
from forcegauge.isolation import same_randomness
from forcegauge.watching.words import line_signals, probe_line

logger = logging.getLogger("forcegauge")

TRACKED = (
    "logprob_change_nats",
    "argmax_mass_change_ratio",
    "mass_ratio",
    "squeeze_nats",
    "squeeze_prefix_nats",
    "squeezed_ratio",
    "hallucination_pressure_nats",
    "preference_margin_nats",
    "displacement_nats",
    "greedy_repetition_ratio",
    "eos_logprob_nats",
    "force_norm",
    "valley_force_ratio",
    "sample_agreement_ratio",
    "sample_distinct_ratio",
    "sample_length_tokens",
    "sample_ended_ratio",
    "probe_duration_seconds",
    "probe_overhead_ratio",
)
"""Metrics that trackers get, by their names in the catalogue: what changed, not every level."""


Send = Callable[[dict[str, float], str], None]


class Teller:
    """Tells of each new probe of a gauge, once. ``log``: in the training log, too."""

    def __init__(self, gauge: ForceGauge, *, log: bool) -> None:
        self._gauge, self._log = gauge, log
        self._told: Judgement | None = None

    def tell(self, model: nn.Module, step: int, send: Send | None) -> None:
        """Tell of a probe that was not told yet; ``send`` hands it to trackers.

        ``send`` gets numbers by ``forcegauge/NAME``, and the verdict in a word; among the numbers
        ``forcegauge/verdict``: warming 0, learning 1, squeezing 2, diverging 3, collapsed 4.
        A tracker that draws random numbers leaves the training's as they were.
        """
        judgement = self._gauge.judgement
        # a resume restores what an earlier process told
        restored = self._gauge.probe_seconds == 0
        new, self._told = judgement is not self._told, judgement
        if judgement is None or restored or not new:
            return
        with self._gauge.guard("other", step), same_randomness(model):
            snapshot = self._gauge.snapshot
            if self._log:
                say(_line(snapshot, judgement))
            if send is not None:
                send(_numbers(snapshot, judgement), judgement.verdict)


def _numbers(snapshot: Snapshot, judgement: Judgement) -> dict[str, float]:
    verdict = float(VERDICTS.index(judgement.verdict))
    return {"forcegauge/verdict": verdict, **tracked(snapshot)}


def tracked(snapshot: Snapshot) -> dict[str, float]:
    """The metrics that trackers get, labels' values behind a slash."""
    return {
        "/".join(("forcegauge", name, *sample.labels)): sample.value
        for sample in snapshot.samples
        if (name := sample.metric.name.removeprefix(PREFIX)) in TRACKED
    }


def say(line: str) -> None:
    """To the ``forcegauge`` logger where the program has set up logging; else printed as trainers
    print their own metrics, without tearing a progress bar."""
    if logger.hasHandlers():
        logger.info(line)
    else:
        tqdm.write(line)


def _line(snapshot: Snapshot, judgement: Judgement) -> str:
    readings = {
        (sample.metric.name.removeprefix(PREFIX), *sample.labels): sample.value
        for sample in snapshot.samples
    }
    return probe_line(
        int(readings.get(("probe_step",), 0)),
        judgement.verdict,
        judgement.since_step,
        line_signals(readings),
        readings.get(("probe_duration_seconds",)),
        [each.name for each in judgement.alarms.values() if each.on],
    )
