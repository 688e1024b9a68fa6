"""Writes the report of a large run and says what it took: 1,000 probes, 12 types, 200 ticks.

python -m tests.benchmarks.report [--probes N] [--ticks N] [--tokens N]; also `recorded_run`, which
puts one of the recorded finetunes into a run's folder as the gauge itself would have left it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from forcegauge.detectors import Detector, Judgement
from forcegauge.phase import Phase, pushes_down
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.record import Record, open_record, write_scores
from forcegauge.report import write_report
from forcegauge.scores import TOKEN_STATISTICS, Scores, TokenScores
from tests.benchmarks.calibration import RECORDS, Row, load
from tests.synthetic_run import scores as synthetic_scores
from tests.synthetic_run import write_jsonl

LEVELS = ("logprob_mean", "argmax_logprob_mean", "entropy")
"""What the recorded finetunes keep of each response type."""
TOKENS = 24
VOCABULARY = 49_152
WORDS = ("The ", "pot ", "stands ", "in ", "the ", "sun ", "and ", "dries ", "out, ", "so ")


def recorded_run(name: str, folder: Path) -> Path:
    """A recorded finetune as a run's folder, judged by the detector as it is now."""
    run = load(RECORDS / f"{name}.jsonl")
    loss = "sft" if run.config["loss"] == "both" else str(run.config["loss"])
    settings = {"loss": loss, "beta": run.config["beta"], "learning_rate": run.config["rate"]}
    settings |= {"start": run.config["start"], "pairs": run.config["pairs"]}
    phase = loss if loss in ("sft", "grpo") else "dpo"
    facts = {"settings": settings, "versions": {}, "resumed_from": None}
    record = open_record(folder, name, clock=lambda: 1790000000.0)
    record.append(
        "run", facts | {"model": "SmolLM2-135M", "probe_hash": "demo"}, phase=phase, step=0
    )
    detector = Detector(0, pushes_down(loss))
    judged = detector.idle()
    said = ""
    for probe in run.probes:
        if probe["step"]:
            judged = detector.update(probe["step"], probe["signals"], probe["noise"])
        _write_probe(record, phase, probe, judged, said)
        said = judged.verdict
    record.append("end", {"reason": "finished"}, phase=phase, step=run.probes[-1]["step"])
    record.close()
    return folder


def _write_probe(record: Record, phase: str, probe: Row, judged: Judgement, said: str) -> None:
    place: dict[str, Any] = {"phase": phase, "step": probe["step"]}
    levels: Mapping[str, list[float]] = probe["levels"]
    found = {
        kind: {each: {"mean": value} for each, value in zip(LEVELS, values, strict=True)}
        for kind, values in levels.items()
    }
    line = {"scores": found, "signals": probe["signals"], "noise": probe["noise"]}
    record.append("probe", {**line, "verdict": judged.verdict, "duration_seconds": 0.5}, **place)
    for state in judged.changed:
        facts = {"alarm": state.name, "on": state.on, "since_step": state.since_step}
        facts |= {"value": state.value, "threshold": state.threshold, "streak": state.streak}
        record.append("alarm", facts | {"evidence": state.evidence}, **place)
    if judged.verdict != said:
        facts = {"verdict": judged.verdict, "since_step": judged.since_step}
        facts |= {"evidence": judged.evidence, "advice": judged.advice}
        record.append("verdict", facts, **place)


def large_run(folder: Path, probes: int = 1000, ticks: int = 200, tokens: int = TOKENS) -> Path:
    """A DPO phase of so many probes and ticks, with texts, rows per response and per token.

    Token ids are drawn at random, so that nothing of them can be packed away.
    """
    record = open_record(folder, "large", clock=lambda: 1790000000.0)
    facts: dict[str, Any] = {"model": "", "probe_hash": "cd" * 32, "settings": {"loss": "dpo"}}
    record.append("run", facts, phase="dpo", step=0)
    start = _many("dpo", 0.0, probes, tokens)
    phase = Phase(0, start, {}, pushes_down=True)
    for tick in range(ticks):
        scores = start if tick == 0 else _many("dpo", tick / ticks, probes, tokens)
        found = phase.probe(10 * tick, scores, {}) if tick else phase.first({})
        line = {"scores": found.summary, "signals": found.signals, "noise": found.noise}
        verdict = {"verdict": found.judgement.verdict, "duration_seconds": 9.0}
        record.append("probe", {**line, **verdict}, phase="dpo", step=10 * tick)
        if tick in (0, ticks - 1):
            write_scores(folder, 10 * tick, scores, phase="dpo", baseline=tick == 0)
    record.close()
    write_texts(folder, probes, tokens)
    return folder


def _many(phase: str, progress: float, probes: int, tokens: int) -> Scores:
    """The synthetic run's scores for more probes, each with tokens of its own."""
    few = synthetic_scores(phase, progress)
    copies = -(-probes // len(few.ids))
    jitter = np.random.default_rng(1).uniform(0.8, 1.2, (probes, 1))
    values = {
        name: np.tile(array, (copies, 1))[:probes] * (1.0 if name == "tokens" else jitter)
        for name, array in few.values.items()
    }
    ids = tuple(f"p{number}" for number in range(probes))
    return replace(few, ids=ids, values=values, per_token=_tokens(values, probes, tokens))


def _tokens(values: Mapping[str, Any], probes: int, tokens: int) -> TokenScores:
    """Per-token statistics around each response's means."""
    count = probes * len(RESPONSE_TYPES)
    random = np.random.default_rng(2)
    wave = random.uniform(0.2, 1.8, count * tokens)
    found = {}
    for name in ("logprob", "argmax_logprob"):
        found[name] = np.repeat(values[f"{name}_mean"].reshape(-1), tokens) * wave
    left = np.log1p(-np.exp(np.minimum(found["logprob"], -1e-6)))
    found["argmax_logprob"] = np.fmax(found["logprob"], np.minimum(found["argmax_logprob"], left))
    every = {name: found.get(name, np.exp(found["argmax_logprob"])) for name in TOKEN_STATISTICS}
    place = np.arange(count, dtype=np.int32)
    return TokenScores(
        np.repeat(place // len(RESPONSE_TYPES), tokens),
        np.repeat(place % len(RESPONSE_TYPES), tokens),
        np.tile(np.arange(tokens, dtype=np.int32), count),
        random.integers(VOCABULARY, size=count * tokens),
        {name: array.astype(np.float32) for name, array in every.items()},
    )


def write_texts(folder: Path, probes: int, tokens: int = TOKENS) -> None:
    """The probe file and greedy outputs of as many probes."""
    text = "".join(WORDS[i % len(WORDS)] for i in range(tokens))
    responses = {name: f"{text}({name})" for name in RESPONSE_TYPES[:-1]}
    asked = [
        {"id": f"p{i}", "prompt": f"What of pot {i}?", "responses": responses}
        for i in range(probes)
    ]
    write_jsonl(folder / "probes.jsonl", asked)
    outputs = [{"phase": "dpo", "step": 0, "text": text, **row} for row in asked]
    write_jsonl(folder / "greedy.jsonl", outputs)


@click.command()
@click.option("--probes", default=1000, show_default=True)
@click.option("--ticks", default=200, show_default=True)
@click.option("--tokens", default=TOKENS, show_default=True, help="Tokens of every response.")
def main(probes: int, ticks: int, tokens: int) -> None:
    """Measure one report."""
    with TemporaryDirectory() as name:
        folder = large_run(Path(name), probes, ticks, tokens)
        start = time.perf_counter()
        page = write_report(folder)
        seconds = time.perf_counter() - start
        size = page.stat().st_size / 1e6
    click.echo(
        f"{probes} probes x {len(RESPONSE_TYPES)} types x {tokens} tokens x {ticks} ticks: "
        f"{seconds:.1f} s, {size:.2f} MB"
    )


if __name__ == "__main__":
    main()
