"""Real short finetunes of SmolLM2 for the calibration of the alarms; one command records a run.

    python -m tests.benchmarks.finetunes NAME...      (or `all`)

Each is a plain loop with the agent in it. What is kept in ``records/NAME.jsonl`` is small: the
agent's signals per probe, what people watch today (loss, gradient norm, chosen log-prob, margin,
KL, entropy), and *apart from these* how the model behaves on held-out prompts: an outcome that the
detectors never see.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from forcegauge.build import build_probes
from forcegauge.demo.model import demo_model
from forcegauge.encoding import encode_prompt, encode_response
from forcegauge.gauge import ForceGauge
from forcegauge.greedy import greedy_decode, repetition, stop_tokens
from forcegauge.isolation import undisturbed
from forcegauge.pairs_input import Pair, read_pairs
from forcegauge.probes import Probe, ProbeSet
from forcegauge.record import probes_by_phase, read_record
from forcegauge.scorer import Scorer

RECORDS = Path(__file__).with_name("records")
DATA = Path(__file__).parents[2] / "agent" / "forcegauge" / "demo"
PROMPT_TOKENS, RESPONSE_TOKENS = 32, 16
BATCH, PROBES, HELD_OUT, EVERY = 4, 8, 8, 2
WARMUP = 4
DECODED_TOKENS = 32


@dataclass(frozen=True)
class Finetune:
    """One run. ``start``: the weights it begins with, ``base``, ``sft`` or ``both``."""

    name: str
    start: str
    loss: str
    rate: float
    beta: float = 0.1
    seed: int = 0
    steps: int = 24
    pairs: int = 32
    noisy: bool = False


FINETUNES = (
    Finetune("dpo-squeeze-0", "sft", "dpo", 5e-5),
    Finetune("dpo-both-0", "both", "dpo", 2e-5),
    Finetune("sft-0", "base", "sft", 5e-5),
    Finetune("dpo-diverge", "sft", "dpo", 1e-3),
    Finetune("ascent", "sft", "ascent", 3e-5),
    Finetune("dpo-gentle-0", "sft", "dpo", 5e-6),
    Finetune("dpo-squeeze-slow", "sft", "dpo", 2e-5, steps=32),
    Finetune("ipo-squeeze", "sft", "ipo", 5e-5),
    Finetune("sppo-squeeze", "sft", "sppo", 5e-5, beta=0.05),
    Finetune("grpo-squeeze", "sft", "grpo", 5e-5),
    Finetune("ipo-both", "both", "ipo", 1e-5),
    Finetune("grpo-both", "both", "grpo", 1e-5),
    Finetune("sft-both", "base", "both", 5e-5),
    Finetune("sft-diverge", "base", "sft", 3e-3),
    Finetune("dpo-squeeze-1", "sft", "dpo", 5e-5, seed=1),
    Finetune("dpo-both-1", "both", "dpo", 2e-5, seed=1),
    Finetune("dpo-noisy", "sft", "dpo", 5e-5, noisy=True),
    Finetune("dpo-tiny", "sft", "dpo", 5e-5, pairs=4),
    Finetune("sft-tiny", "base", "sft", 5e-5, pairs=4),
    Finetune("sft-1", "base", "sft", 5e-5, seed=1),
    Finetune("dpo-gentle-1", "sft", "dpo", 5e-6, seed=1),
    Finetune("dpo-base", "base", "dpo", 1e-5),
    Finetune("dpo-slow", "sft", "dpo", 5e-6, steps=64),
    Finetune("grpo-both-slow", "both", "grpo", 5e-6, steps=64),
    Finetune("dpo-both-slow", "both", "dpo", 1e-5, steps=56),
    Finetune("grpo-slow", "sft", "grpo", 5e-6, steps=64),
    Finetune("sft-slow", "base", "sft", 1e-5, steps=64),
    Finetune("ipo-slow", "sft", "ipo", 1e-5, steps=48),
)


def pair_loss(run: Finetune, chosen: Tensor, rejected: Tensor, reference: Tensor) -> Tensor:
    """Loss of a batch of pairs from summed log-probs [pairs] and the reference's [pairs, 2]."""
    up, down = chosen - reference[:, 0], rejected - reference[:, 1]
    if run.loss == "dpo":
        return -logsigmoid(run.beta * (up - down)).mean()
    if run.loss == "ipo":
        return ((up - down) / RESPONSE_TOKENS - 1 / (2 * run.beta)).square().mean()
    if run.loss == "sppo":
        half = 1 / (2 * run.beta)
        return ((up - half).square() + (down + half).square()).mean()
    if run.loss == "ascent":
        return rejected.mean() / RESPONSE_TOKENS
    # GRPO with two samples a prompt, rewarded 1 and 0: advantages +1 and -1, clipped ratios
    ratio_up, ratio_down = (x.div(RESPONSE_TOKENS).exp() for x in (up, down))
    return (-ratio_up.clamp(max=1.2) + ratio_down.clamp(min=0.8)).mean()


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model())


def pairs_of(run: Finetune) -> list[Pair]:
    pairs = read_pairs(str(DATA / "pairs.jsonl")).pairs
    return [pairs[row * len(pairs) // run.pairs] for row in range(run.pairs)]


def held_out_pairs() -> list[Pair]:
    return list(read_pairs(str(DATA / "held_out.jsonl")).pairs)


def encoded(pair: Pair, name: str) -> tuple[list[int], list[int]]:
    prompt = encode_prompt(tokenizer(), pair.prompt)[-PROMPT_TOKENS:]
    return prompt, encode_response(tokenizer(), pair.responses[name])[:RESPONSE_TOKENS]


Rows = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Forward:
    """Log-probs and labels [rows, tokens], 0 and -100 where nothing is trained."""

    logps: Tensor
    labels: Tensor
    logits: Tensor
    input_ids: Tensor


def forward(model: nn.Module, rows: Rows) -> Forward:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    logps = logits.float().log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return Forward(torch.where(targets == -100, 0.0, logps), targets, logits, ids[:, :-1])


def load(start: str) -> nn.Module:
    """The starting weights; SFT ones are made once and kept beside the model."""
    folder = Path(demo_model())
    ready = folder.with_name(f"{folder.name}-finetunes-{start}")
    if start != "base" and not ready.exists():
        trained = load("base")
        train_sft(trained, Finetune("start", "base", "both" if start == "both" else "sft", 1e-4))
        trained.save_pretrained(ready)  # type: ignore[operator]
    source = folder if start == "base" else ready
    model: nn.Module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return model


def train_sft(model: nn.Module, run: Finetune) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.0)
    for step in range(20):
        sft_loss(model, run, step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()


def batch_of(run: Finetune, step: int) -> list[Pair]:
    pairs = pairs_of(run)
    epoch, place = divmod(step * BATCH, len(pairs))
    order = np.random.default_rng((run.seed, epoch)).permutation(len(pairs))
    return [pairs[i] for i in np.roll(order, -place)[:BATCH]]


def sft_loss(model: nn.Module, run: Finetune, step: int) -> tuple[Tensor, Forward]:
    names = ("chosen", "rejected") if run.loss == "both" else ("chosen",)
    rows = [encoded(pair, name) for pair in batch_of(run, step) for name in names]
    found = forward(model, rows)
    return -found.logps.sum() / (found.labels != -100).sum(), found


def preference_loss(
    model: nn.Module, run: Finetune, step: int, reference: dict[str, Tensor]
) -> tuple[Tensor, Forward]:
    batch = batch_of(run, step)
    flips = np.random.default_rng((run.seed, 9, step)).random(len(batch)) < 0.5
    sides = [
        ("rejected", "chosen") if run.noisy and flip else ("chosen", "rejected") for flip in flips
    ]
    rows = [encoded(p, s[0]) for p, s in zip(batch, sides, strict=True)]
    rows += [encoded(p, s[1]) for p, s in zip(batch, sides, strict=True)]
    found = forward(model, rows)
    sums, half = found.logps.sum(1), len(batch)
    known = torch.stack(
        [
            reference[p.id][[int(side != "chosen") for side in s]]
            for p, s in zip(batch, sides, strict=True)
        ]
    )
    return pair_loss(run, sums[:half], sums[half:], known), found


def reference_of(model: nn.Module, run: Finetune) -> dict[str, Tensor]:
    """Summed log-probs of chosen and rejected [2] before training, by pair."""
    found = {}
    with undisturbed(model):
        for pair in pairs_of(run):
            rows = [encoded(pair, name) for name in ("chosen", "rejected")]
            found[pair.id] = forward(model, rows).logps.sum(1)
    return found


class HeldOut:
    """How the model behaves on prompts that nobody trains on, and the KL from its start there."""

    def __init__(self) -> None:
        pairs = held_out_pairs()[:HELD_OUT]
        both = ("chosen", "rejected")
        probes = (Probe(p.id, p.prompt, {n: p.responses[n] for n in both}) for p in pairs)
        self._scorer = Scorer(
            ProbeSet(tuple(probes)),
            tokenizer(),
            max_prompt_tokens=PROMPT_TOKENS,
            max_response_tokens=RESPONSE_TOKENS,
        )
        self._prompts = [encode_prompt(tokenizer(), p.prompt)[-PROMPT_TOKENS:] for p in pairs]

    def look(self, model: nn.Module) -> dict[str, float]:
        with undisturbed(model):
            scores = self._scorer.score(model)
            stop = stop_tokens(model, tokenizer().eos_token_id)
            said = greedy_decode(model, self._prompts, new_tokens=DECODED_TOKENS, stop=stop)
        chosen, rejected = (scores.column("logprob_mean", n) for n in ("chosen", "rejected"))
        return {
            "chosen_nats": float(np.mean(chosen)),
            "accuracy": float(np.mean(chosen > rejected)),
            "repetition": float(np.nan_to_num(repetition(said))),
        }


def record(run: Finetune, folder: Path) -> list[dict[str, Any]]:
    """Train and watch one run; the rows of its fixture."""
    torch.manual_seed(run.seed)
    model = load(run.start)
    model.train()
    reference = {} if run.loss in ("sft", "both") else reference_of(model, run)
    held_out, probes = (
        HeldOut(),
        build_probes(pairs_of(run), held_out_pairs(), n=min(PROBES, run.pairs), seed=0),
    )
    gauge = ForceGauge(
        probes,
        tokenizer(),
        run=run.name,
        directory=folder,
        phase=run.loss,
        every=EVERY,
        budget=None,
        loss="sft" if run.loss == "both" else run.loss,
        port=0,
        max_prompt_tokens=PROMPT_TOKENS,
        max_response_tokens=RESPONSE_TOKENS,
    )
    rows: list[dict[str, Any]] = [{"kind": "finetune", **asdict(run)}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.0)
    with gauge:
        gauge.step(model, 0)
        rows.append({"kind": "held_out", "step": 0, **held_out.look(model)})
        for step in range(1, run.steps + 1):
            compute = sft_loss if run.loss in ("sft", "both") else preference_loss
            extra = () if run.loss in ("sft", "both") else (reference,)
            loss, found = compute(model, run, step - 1, *extra)
            gauge.observe(found.logps, found.labels, logits=found.logits, input_ids=found.input_ids)
            loss.backward()
            optimizer.param_groups[0]["lr"] = run.rate * min(1.0, step / WARMUP)
            norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            gauge.step(model, step, loss=loss.item())
            rows.append(
                {"kind": "step", "step": step, "loss": loss.item(), "grad_norm": norm.item()}
            )
            if step % (2 * EVERY) == 0:
                rows.append({"kind": "held_out", "step": step, **held_out.look(model)})
    return rows + probe_rows(folder)


def probe_rows(folder: Path) -> list[dict[str, Any]]:
    """The agent's own lines, without the quantiles."""
    lines = read_record(folder)
    (phase,) = probes_by_phase(lines).values()
    return [
        {
            "kind": "probe",
            "step": line["step"],
            "signals": {k: round(v, 5) for k, v in line["signals"].items()},
            "noise": {k: round(v, 5) for k, v in line["noise"].items()},
            "levels": {
                t: [
                    round(s[k]["mean"], 4)
                    for k in ("logprob_mean", "argmax_logprob_mean", "entropy")
                ]
                for t, s in line["scores"].items()
            },
        }
        for line in phase
    ]


def main(names: list[str]) -> None:
    """Record runs; those that are recorded already are left alone with `all`."""
    RECORDS.mkdir(exist_ok=True)
    for run in FINETUNES:
        target = RECORDS / f"{run.name}.jsonl"
        if run.name not in names and ("all" not in names or target.exists()):
            continue
        began = time.time()
        folder = Path(demo_model()).with_name("finetunes") / f"{run.name}-{int(began)}"
        rows = record(run, folder)
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
        last = [row for row in rows if row["kind"] == "held_out"]
        print(run.name, f"{time.time() - began:.0f} s", last[0], last[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
