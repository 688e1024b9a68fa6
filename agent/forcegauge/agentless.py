"""Scores the checkpoints of a training that has no agent in it, as the agent would have.

A gauge is told of checkpoints instead of optimizer steps: record, metrics, verdict and alarms come
from the same code. What only a backward pass shows (forces, the loss) is absent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from forcegauge.arrivals import checkpoints_in, settled
from forcegauge.checkpoints import base_of, is_adapter, load_checkpoint, tokenizer_place
from forcegauge.detectors import Judgement
from forcegauge.errors import InputError, RunError
from forcegauge.gauge import ForceGauge
from forcegauge.journal import NOWHERE
from forcegauge.loading import load_tokenizer, pick_device
from forcegauge.probes import ProbeSet
from forcegauge.record import RECORD_NAME, Line, probes_by_phase, read_record
from forcegauge.textfiles import first_line

logger = logging.getLogger("forcegauge")

POLL_SECONDS = 30.0
_FATAL = ("scoring", "out_of_memory", "record", "other")
"""Failures of a gauge after which a checkpoint is not scored."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which checkpoints to score, and how.

    ``folder`` holds folders named checkpoint-N. ``baseline`` names the model before training;
    without it an adapter's base is the baseline, or else the first checkpoint. The record goes to
    ``directory``, FOLDER/forcegauge unless named. ``gauge`` are more settings of `ForceGauge`:
    phase, loss, beta, monitor, ...
    """

    folder: str
    probes: str
    run: str
    directory: str | None = None
    baseline: str | None = None
    device: str | None = None
    dtype: str = "float32"
    gauge: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        """The run's directory."""
        return Path(self.directory or f"{self.folder}/forcegauge")

    @property
    def phase(self) -> str:
        """The part of the run that these checkpoints are of."""
        return str(self.gauge.get("phase", "train"))


@dataclass(frozen=True)
class Scored:
    """How the run is after a checkpoint was scored; ``samples`` are its metrics: name, label
    values and value of each."""

    step: int
    path: Path
    record_id: str
    judgement: Judgement
    samples: tuple[tuple[str, tuple[str, ...], float], ...]


Told = Callable[[Scored], object]

Check = Callable[[str], object]


def score_new(
    scoring: Scoring,
    told: Told = lambda found: None,
    *,
    check: Check = lambda path: None,
    said: set[str] | None = None,
) -> list[int]:
    """Score what is new and whole, once; the steps that were scored, each of them also ``told``.

    ``check`` raises `InputError` for a path that may not be opened. ``said`` is what was logged by
    earlier calls and is not logged again. Metrics are served only where the gauge's settings say
    ``bind``. The run has not ended then: a later call, also in another process, goes on with it.
    Raises `InputError` for bad settings.
    """
    quiet = replace(scoring, gauge={"bind": NOWHERE, **scoring.gauge})
    watcher = Watcher(quiet, told, check=check, said=said)
    try:
        return watcher.score_new()
    finally:
        watcher.close(None)


def follow(
    scoring: Scoring,
    stopped: threading.Event,
    *,
    seconds: float = POLL_SECONDS,
    told: Told = lambda found: None,
) -> None:
    """Score what is new every so many ``seconds``, until ``stopped`` is set; ``told`` hears of
    each. Metrics are served, and the monitor is told, all the while."""
    watcher = Watcher(scoring, told, stopped)
    watcher.resume()
    try:
        while not stopped.is_set():
            watcher.score_new()
            stopped.wait(seconds)
    finally:
        watcher.close("stopped")


class Watcher:
    """One gauge over the checkpoints of a folder; see `Scoring`."""

    def __init__(
        self,
        scoring: Scoring,
        told: Told,
        stopped: threading.Event | None = None,
        *,
        check: Check = lambda path: None,
        said: set[str] | None = None,
    ) -> None:
        self.scoring, self._told, self._check = scoring, told, check
        self._stopped = stopped or threading.Event()
        self._said = set[str]() if said is None else said
        self.gauge: ForceGauge | None = None
        self._probes = ProbeSet.load(scoring.probes)
        self._device = pick_device(scoring.device)
        self._last, self._model = recorded(scoring)

    def resume(self) -> None:
        """Serve what the record knows already, before anything new is there."""
        there = checkpoints_in(self.scoring.folder)
        if self._last is not None and there:
            self.gauge = self._open(there[-1][1])

    def score_new(self) -> list[int]:
        """Score the whole ones that are newer than what is scored already, by rising step.

        One that cannot be scored is logged, and tried again until a later one is scored.
        """
        last = -1 if self._last is None else self._last
        new = [one for one in checkpoints_in(self.scoring.folder) if one[0] > last]
        whole = settled(new)
        return [s for s, path in whole if not self._stopped.is_set() and self._scored(s, path)]

    def close(self, reason: str | None) -> None:
        """End the record with this reason, or leave it open for another process without one."""
        if self.gauge is not None:
            self.gauge.close(reason)
        self.gauge = None

    def _scored(self, step: int, path: Path) -> bool:
        try:
            self._score(step, path)
        except (InputError, RunError, OSError) as error:
            # what failed is not tried again by the same gauge
            self.close(None)
            self._warn(f"{path} could not be scored: {first_line(error)}")
            return False
        return True

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)

    def _score(self, step: int, path: Path) -> None:
        self._check(str(path))
        self.gauge = gauge = self.gauge or self._open(path)
        if self._last is None:
            self._take_baseline(gauge, path)
        self._probe(gauge, str(path), step)
        gauge.saved(path, step)
        if gauge.judgement is not None:
            rows = ((row.metric.name, row.labels, row.value) for row in gauge.snapshot.samples)
            self._told(Scored(step, path, gauge.record_id, gauge.judgement, tuple(rows)))

    def _take_baseline(self, gauge: ForceGauge, path: Path) -> None:
        name = self.scoring.baseline or (base_of(str(path)) if is_adapter(path) else None)
        if name is None:
            self._warn(f"no baseline is named: changes are counted from {path}")
        else:
            self._probe(gauge, name, 0)

    def _probe(self, gauge: ForceGauge, name: str, step: int) -> None:
        scoring = self.scoring
        for place in (name, base_of(name)) if is_adapter(name) else (name,):
            # what is no folder is a name on the model hub
            if Path(place).exists():
                self._check(place)
        model = load_checkpoint(
            name, dtype=scoring.dtype, device=self._device, like=scoring.baseline
        )
        failed = sum(gauge.failures.get(kind, 0) for kind in _FATAL)
        gauge.step(model, step)
        if sum(gauge.failures.get(kind, 0) for kind in _FATAL) > failed:
            raise RunError(f"{name}: scoring failed, the log and the record say why")
        self._last = step

    def _open(self, path: Path) -> ForceGauge:
        scoring = self.scoring
        gauge = ForceGauge(
            self._probes,
            load_tokenizer(tokenizer_place(path, scoring.baseline)),
            run=scoring.run,
            directory=scoring.record,
            **{"every": 1, "budget": None, **scoring.gauge},
        )
        if self._last is not None:
            # nothing is due at a step that is scored: the gauge only reads what is recorded
            gauge.step(_named(self._model), self._last)
        return gauge


def recorded(scoring: Scoring) -> tuple[int | None, str]:
    """The last scored step of the phase, in the trainer's steps, and the model's name.

    Raises `InputError` for a record that cannot be read.
    """
    if not (scoring.record / RECORD_NAME).exists():
        return None, ""
    lines = read_record(scoring.record)
    rows = probes_by_phase(lines).get(scoring.phase)
    if not rows:
        return None, ""
    opened = next(line for line in lines if _opens(line, scoring.phase))
    return rows[-1]["step"] - opened["settings"]["offset"], opened["model"]


def _opens(line: Line, phase: str) -> bool:
    return bool(line["kind"] == "run" and line["phase"] == phase)


def _named(name: str) -> nn.Module:
    """A stand-in for a model that is not looked at."""
    model: Any = nn.Identity()
    model.config = SimpleNamespace(_name_or_path=name)
    found: nn.Module = model
    return found
