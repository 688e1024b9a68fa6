"""A whole run without a model: the paper's shape, through the real signals and detectors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forcegauge.phase import Phase
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.record import Record, open_record
from forcegauge.scores import STATISTICS, Scores, TokenScores

PROBES = 8
SFT_STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 20)
DPO_STEPS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)

CHECKPOINTS = (("sft", 20, True), ("dpo", 30, True), ("dpo", 44, False))

BASE = (-2.7, -3.0, -3.2, -3.3, -3.6, -3.7, -3.6, -4.0, -4.2, -5.9, -8.6, -0.45)
SFT_GAIN = (2.1, 0.5, 0.9, 0.3, 0.6, 0.1, 1.5, -0.1, -0.2, -0.5, -0.6, -0.5)
DPO_GAIN = (-0.5, -6.9, -1.5, -2.2, -1.7, -2.0, -2.2, -1.6, -1.4, -1.2, -0.9, -0.8)
"""Per response type, nats per token: the shape of the paper's runs and of measured small ones."""


def levels(phase: str, progress: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-prob and argmax log-prob per type at a progress in 0..1 of a phase."""
    base, sft, dpo = map(np.array, (BASE, SFT_GAIN, DPO_GAIN))
    learned = 1 - math.exp(-4 * progress) if phase == "sft" else 1.0
    pushed = progress**1.4 if phase == "dpo" else 0.0
    logprob = base + sft * learned + dpo * pushed
    if phase == "dpo":
        logprob[0] += 0.25 * math.sin(math.pi * progress)
    argmax = np.linspace(-1.0, -1.4, len(base)) + 0.35 * learned + 0.55 * pushed
    argmax[0] += 0.2 * learned
    return logprob, np.minimum(np.maximum(argmax, logprob), -0.02)


def scores(phase: str, progress: float, seed: int = 0) -> Scores:
    spread = np.random.default_rng(seed).normal(0, 0.25, (PROBES, len(RESPONSE_TYPES)))
    logprob, argmax = (row * np.exp(spread) for row in levels(phase, progress))
    mass, top = np.exp(np.minimum(logprob, -0.02) * 0.6), np.exp(np.minimum(argmax, -0.02))
    values = {
        "tokens": np.full_like(logprob, 24.0),
        "logprob_mean": logprob,
        "argmax_logprob_mean": argmax,
        "logprob_prefix": logprob * 1.1,
        "argmax_logprob_prefix": argmax * 1.1,
        "argmax_mass": top,
        "entropy": 2.2 * np.abs(argmax) ** 0.8,
        "mass_target": mass,
        "mass_argmax": (1 - mass) * top,
        "mass_rest": (1 - mass) * (1 - top),
    }
    missing = {name: np.full_like(logprob, np.nan) for name in STATISTICS if name not in values}
    empty: Any = np.empty(0)
    ids = tuple(f"p{number}" for number in range(PROBES))
    return Scores(
        ids, RESPONSE_TYPES, values | missing, TokenScores(empty, empty, empty, empty, {})
    )


def write_phase(record: Record, name: str, offset: int, steps: tuple[int, ...]) -> None:
    """One phase as the gauge writes it, judged by the real detector."""
    facts: dict[str, Any] = {"versions": {"torch": "2.13.0"}}
    facts |= {"settings": {"loss": name, "every": 4, "beta": 0.1}}
    facts |= {"probe_hash": "ab" * 32, "model": "SmolLM2-135M-Instruct", "resumed_from": None}
    record.append("run", facts, phase=name, step=offset)
    baseline = scores(name, 0.0)
    phase = Phase(offset, baseline, {}, pushes_down=name != "sft")
    said = ""
    for step in steps:
        behaviour = {"greedy_repetition_ratio": 0.05 + (0.5 * step / 24 if name == "dpo" else 0)}
        now = scores(name, step / steps[-1])
        found = phase.probe(offset + step, now, behaviour) if step else phase.first(behaviour)
        line: dict[str, Any] = {
            "scores": found.summary,
            "signals": found.signals,
            "noise": found.noise,
        }
        line |= {"verdict": found.judgement.verdict, "duration_seconds": 0.8}
        record.append("probe", line, phase=name, step=offset + step)
        write_judgement(record, name, offset + step, found.judgement, said)
        said = found.judgement.verdict
        if name == "dpo" and step:
            write_forces(record, offset + step)


def write_judgement(record: Record, phase: str, step: int, judgement: Any, said: str) -> None:
    for state in judgement.changed:
        facts = {"alarm": state.name, "on": state.on, "since_step": state.since_step}
        facts |= {"value": state.value, "threshold": state.threshold, "streak": state.streak}
        record.append("alarm", facts | {"evidence": state.evidence}, phase=phase, step=step)
    if judgement.verdict != said:
        facts = {"verdict": judgement.verdict, "since_step": judgement.since_step}
        facts |= {"evidence": judgement.evidence, "advice": judgement.advice}
        record.append("verdict", facts, phase=phase, step=step)


def write_forces(record: Record, step: int) -> None:
    norms = {"force_up_norm": 3.0 + 0.1 * step, "force_down_norm": 2.0 + 0.15 * step}
    facts = {**norms, "valley_force_ratio": min(1.0, 0.02 * step)}
    record.append("forces", facts, phase="dpo", step=step)


def write_texts(folder: Path) -> None:
    prompts = ["How do I keep basil alive?", "Why is the sky blue?", "A quick soup for two?"]
    stages = (
        ("sft", 0, "Basil likes light and warmth. Water it when the top of the soil is dry."),
        ("sft", 20, "Put the pot on a bright windowsill and water it from below."),
        ("dpo", 20, "Put the pot on a bright windowsill and water it from below."),
        ("dpo", 44, "Put it in the sun, in the sun, put it in the sun, put it in the sun."),
    )
    rows = [
        {"phase": phase, "step": step, "id": f"p{i}", "prompt": prompt, "text": text}
        for phase, step, text in stages
        for i, prompt in enumerate(prompts)
    ]
    write_jsonl(folder / "greedy.jsonl", rows)
    responses = {name: f"An answer of type {name}." for name in RESPONSE_TYPES[:-1]}
    probes = [{"id": f"p{i}", "prompt": p, "responses": responses} for i, p in enumerate(prompts)]
    write_jsonl(folder / "probes.jsonl", probes)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_phase_run(folder: Path) -> Path:
    """SFT, then a DPO that squeezes."""
    ticks = iter(range(10**6))
    record = open_record(folder, "demo", clock=lambda: 1790000000.0 + 2.0 * next(ticks))
    write_phase(record, "sft", 0, SFT_STEPS)
    write_phase(record, "dpo", 20, DPO_STEPS)
    for phase, step, healthy in CHECKPOINTS:
        facts = {"path": f"out/{phase}/checkpoint-{step}", "healthy": healthy}
        record.append("checkpoint", facts, phase=phase, step=step)
    record.append("end", {"reason": "finished"}, phase="dpo", step=44)
    record.close()
    write_texts(folder)
    return folder
