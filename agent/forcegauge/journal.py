"""What a run leaves behind: its record, score files, texts, and what `/metrics` shows."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forcegauge.behaviour import SIGNALS as DECODED
from forcegauge.carried import GREEDY_NAME, State, first_outputs, pack, unpack
from forcegauge.client import Client, monitor_client, reachable_address
from forcegauge.detectors import Judgement
from forcegauge.exporter import Endpoint, RunState, build_snapshot, endpoint, model_label
from forcegauge.phase import Probe
from forcegauge.probes import RESPONSE_TYPES, ProbeSet
from forcegauge.record import (
    Line,
    Record,
    open_record,
    probes_by_phase,
    read_record,
    read_scores,
    write_scores,
)
from forcegauge.scores import Scores

logger = logging.getLogger("forcegauge")

NOWHERE = "none"
SHOWN_SECONDS = 1.0
PROBES_NAME = "probes.jsonl"
PACKAGES = ("forcegauge", "torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class Past:
    """What an earlier part of the run left: empty for a new run.

    ``offset`` is added to the trainer's steps. With a ``baseline`` the phase goes on, and
    ``probes`` are its recorded probe lines up to the step it goes on from.
    """

    offset: int = 0
    baseline: Scores | None = None
    probes: tuple[Line, ...] = ()
    greedy: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> int:
        """Into how many parts the probe set was cut for the last probe."""
        size = len(self.baseline.ids) if self.baseline else 1
        return size // ((self.probes[-1].get("probes_scored") if self.probes else 0) or size)


@dataclass
class Journal:
    """Everything that is written and served, by one process of a run."""

    run: str
    directory: Path
    phase: str
    settings: Mapping[str, Any]
    texts: bool
    probe_set: ProbeSet
    monitor: str | None = None
    model: str = ""
    offset: int = 0
    record: Record | None = None
    served: Endpoint | None = None
    client: Client | None = field(init=False)
    state: RunState = field(init=False)
    judged: Judgement | None = None
    tokens_seen: int | None = None
    _shown: float = -SHOWN_SECONDS

    def __post_init__(self) -> None:
        self.client = monitor_client(self.monitor)
        version = _versions().get("forcegauge", "")
        self.state = RunState(self.run, self.phase, self.model, self.probe_set.hash, version)

    def serve(self, bind: str, port: int) -> None:
        """Open the endpoint, or share the one that this process has there already.

        Nothing is served at the address ``none``.
        """
        if bind == NOWHERE:
            return
        self.served = endpoint(bind, port)
        logger.info("metrics: http://%s:%d/metrics", bind, self.served.port)

    def open(self, model: str, trainer_step: int, known: Mapping[str, Any]) -> Past:
        """Open the record, new or continued, and say what stands in it; ``known`` goes beside the
        settings."""
        self.record = open_record(self.directory, self.run)
        lines = read_record(self.directory)
        self._continue_phase(lines)
        past = self._past(lines, trainer_step)
        self.offset, self.model = past.offset, model
        self.state = replace(self.state, model=model, phase=self.phase)
        resumed = past.offset + trainer_step if past.baseline is not None else None
        facts = {
            "probe_hash": self.probe_set.hash,
            "model": model,
            "settings": {**known, **self.settings, "offset": past.offset},
            "versions": _versions(),
            "resumed_from": resumed,
        }
        self.line("run", trainer_step, facts)
        if self.texts:
            self.probe_set.save(self.directory / PROBES_NAME)
        return past

    def pack(self) -> State:
        """What the run needs to go on elsewhere; empty without an open record."""
        return pack(self.directory, self.run, self.phase) if self.record else {}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """Go on from what `pack` gave, where there is no record yet; before `open`."""
        unpack(state, self.directory, self.run, self.probe_set if self.texts else None)

    def join(self, judged: Callable[[], Judgement | None]) -> None:
        """Tell the monitor of this run, where there is one; ``judged`` says how the run is now."""
        if self.client is None:
            return
        probes, beta = self.directory.absolute() / PROBES_NAME, self.settings["beta"]
        facts = {
            "run": self.run,
            "record_id": self.record.record_id if self.record else secrets.token_hex(8),
            "address": self._address(),
            "model": _place_or_name(self.model),
            "probes": str(probes) if probes.exists() else "",
            "probe_hash": self.probe_set.hash,
            "loss": _plain_loss(self.settings["loss"]),
            "beta": beta if isinstance(beta, int | float) else None,
            "train": self.settings["train"],
        }
        self.client.join(facts, lambda: self._status(judged()))

    def _status(self, judged: Judgement | None) -> dict[str, Any]:
        return {
            "step": self.state.train_step or 0,
            "verdict": self.state.verdict,
            "since_step": judged.since_step if judged else 0,
            "evidence": judged.evidence if judged else "",
        }

    def _address(self) -> str:
        return reachable_address(self.served.bind, self.served.port) if self.served else ""

    def _continue_phase(self, lines: list[Line]) -> None:
        """Another probe set cannot go on from this phase's baseline: it gets a phase of its own."""
        hashes = {row["phase"]: row["probe_hash"] for row in lines if row["kind"] == "run"}
        name, count, mine = self.phase, 1, self.probe_set.hash
        while hashes.get(name, mine) != mine:
            count += 1
            name = f"{self.phase}.{count}"
        if name != self.phase:
            logger.warning("the probe set has changed: phase %s starts with a new baseline", name)
            self.phase = name

    def _past(self, lines: list[Line], trainer_step: int) -> Past:
        probes = probes_by_phase(lines)
        outputs = first_outputs(self.directory) if self.texts else []
        greedy = {row["id"]: row["text"] for row in outputs}
        opened = [row for row in lines if row["kind"] == "run" and row["phase"] == self.phase]
        if not opened or self.phase not in probes:
            return Past(max((row["step"] for row in lines), default=0), greedy=greedy)
        offset = int(opened[0]["settings"]["offset"])
        first, *later = probes[self.phase]
        until = offset + trainer_step
        kept = (first, *(row for row in later if row["step"] <= until))
        baseline = read_scores(self.directory / "scores" / f"{first['step']}.safetensors")
        return Past(offset, baseline, kept, greedy)

    def probe(self, found: Probe, scores: Scores, *, baseline: bool, seconds: float) -> None:
        """Record a probe with its per-response rows; nothing without an open record."""
        if self.record is None:
            return
        facts = {
            "scores": found.summary,
            "signals": found.signals,
            "noise": found.noise,
            "verdict": found.judgement.verdict,
            "duration_seconds": seconds,
            "probes_scored": found.scored,
        }
        if self.tokens_seen is not None:
            facts["tokens_seen"] = self.tokens_seen
        self.line("probe", found.step - self.offset, facts)
        write_scores(
            self.directory,
            found.step,
            scores,
            phase=self.phase,
            baseline=baseline,
            per_token=self.texts,
        )

    def judgement(self, found: Probe) -> None:
        """Record alarms that went on or off, and the verdict when it is another one."""
        judgement, step = found.judgement, found.step - self.offset
        for state in judgement.changed:
            facts = {"alarm": state.name, "on": state.on, "since_step": state.since_step}
            sizes = {"value": state.value, "threshold": state.threshold, "streak": state.streak}
            self.line("alarm", step, {**facts, **sizes, "evidence": state.evidence})
        if self.judged is None or judgement.verdict != self.judged.verdict:
            self.line(
                "verdict",
                step,
                {
                    "verdict": judgement.verdict,
                    "since_step": judgement.since_step,
                    "evidence": judgement.evidence,
                    "advice": judgement.advice,
                },
            )
        self.judged = judgement

    def forces(self, step: int, forces: Mapping[str, float]) -> None:
        """Show and record forces, where any were read."""
        if forces:
            self.show(forces=forces)
            self.line("forces", step, forces)

    def outputs(self, step: int, texts: Mapping[str, str]) -> None:
        """Append greedy outputs by probe id to greedy.jsonl, unless texts are kept out."""
        if not self.texts:
            return
        prompts = {probe.id: probe.as_json()["prompt"] for probe in self.probe_set.probes}
        head = {"phase": self.phase, "step": self.offset + step}
        rows = [{**head, "id": i, "prompt": prompts[i], "text": text} for i, text in texts.items()]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (self.directory / GREEDY_NAME).open("a", encoding="utf-8") as file:
            file.write(data)

    def show(self, **known: Any) -> None:
        """Put what is known now on the endpoint."""
        self.state = replace(self.state, **known)
        if self.served is not None:
            self.served.publish(build_snapshot(self.state))

    def show_step(self, **known: Any) -> None:
        """The same, once in `SHOWN_SECONDS` at most: it is called at every step."""
        self.state = replace(self.state, **known)
        if time.monotonic() >= self._shown + SHOWN_SECONDS:
            self._shown = time.monotonic()
            self.show()

    def show_again(self, found: Probe, line: Line, *, baseline: bool) -> None:
        """Put a recorded probe on the endpoint."""
        took, when = line["duration_seconds"], line["time"]
        self.show_probe(found, baseline=baseline, seconds=took, now=when)

    def show_probe(self, found: Probe, *, baseline: bool, seconds: float, now: float) -> None:
        """Put a probe on the endpoint; a baseline becomes what changes are counted from."""
        start = {"baseline": found.summary} if baseline else {}
        self.show(
            **start,
            verdict=found.judgement.verdict,
            since_step=found.judgement.since_step,
            probe_step=found.step,
            probe_timestamp=now,
            probe_duration=seconds,
            scores=found.summary,
            noise={name: v for name, v in found.noise.items() if name in RESPONSE_TYPES},
            probes_scored=found.scored or None,
            # a probe that decoded nothing leaves what is known of the greedy outputs
            signals={**self._decoded(), **found.signals},
            alarms=found.judgement.alarms,
        )

    def _decoded(self) -> dict[str, float]:
        return {name: v for name, v in self.state.signals.items() if name in DECODED}

    def line(self, kind: str, step: int, facts: Mapping[str, Any]) -> None:
        """Append a line, and note it for the monitor; ``step`` is the trainer's."""
        if self.client is not None:
            self.client.note(kind, self.offset + step, {**facts, "phase": self.phase})
        if self.record is not None:
            self.record.append(kind, facts, phase=self.phase, step=self.offset + step)

    def end(self, reason: str | None, step: int) -> None:
        """Write the end of the run and give the record free; the endpoint goes on.

        Without a reason the run has not ended: another process goes on with it.
        """
        self.show(active=reason is None)
        try:
            self.told_end(reason, step)
        finally:
            if self.record is not None:
                self.record.close()
                self.record = None

    def told_end(self, reason: str | None, step: int) -> None:
        """Write and tell the end alone: all that may be done while a signal is handled."""
        try:
            if reason is not None:
                self.line("end", step, {"reason": reason})
        finally:
            if self.client is not None:
                self.client.close(reason)


def _place_or_name(model: str) -> str:
    """A model's folder for whoever loads it, or its name without what a URL may hold."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model_label(model)


def _plain_loss(loss: str | None) -> str | None:
    """A loss as snapshots name it: ``ipo`` for TRL's ``dpo:ipo``, ``sigmoid`` for a mixture that
    begins with it."""
    found = (loss or "").rpartition(":")[2].partition("+")[0]
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
