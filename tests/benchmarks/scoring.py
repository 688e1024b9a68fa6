"""Scoring side by side, alternating, medians: this package, the authors' way, TRL's helper, floor.

python tests/benchmarks/scoring.py --model smollm2 --shape typical --prompts 4 --rounds 3
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forcegauge import head as heads
from forcegauge import ways
from forcegauge.encoding import TokenSequence

TYPES = 12
SHAPES = {"short": (64, 48), "typical": (128, 96), "long": (1024, 128)}
RANDOM = {
    "qwen": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("gpt2", {"n_positions": 2048}),
}
BUDGET = 4096


@dataclass
class Result:
    """Seconds of each round, peak memory above what stood before, and the log-probs' sums."""

    seconds: list[float]
    peak_mib: float
    sums: Tensor


def load(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """SmolLM2 with its weights, or another shape with random ones."""
    if name == "smollm2":
        from forcegauge.demo.model import demo_model

        real: Any = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=dtype)
        return cast(PreTrainedModel, real.eval())
    kind, shape = RANDOM[name]
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), dtype=dtype)
    return cast(PreTrainedModel, made.eval())


def make_sequences(prompts: int, shape: tuple[int, int], vocabulary: int) -> list[TokenSequence]:
    """Twelve responses of each prompt, lengths spread by a quarter around the shape's."""
    random = torch.Generator().manual_seed(0)

    def tokens(mean: int) -> tuple[int, ...]:
        size = int(torch.randint(mean * 3 // 4, mean * 5 // 4 + 1, (), generator=random))
        return tuple(torch.randint(10, vocabulary, (size,), generator=random).tolist())

    return [
        TokenSequence(probe, place, prompt, tokens(shape[1]))
        for probe in range(prompts)
        for prompt in [tokens(shape[0])]
        for place in range(TYPES)
    ]


def ours(model: PreTrainedModel, sequences: Sequence[TokenSequence], way: ways.Way) -> Tensor:
    """This package, every statistic."""
    head = heads.head_of(model)
    owner = torch.cat([torch.full((len(s.response),), i) for i, s in enumerate(sequences)])
    sums = torch.zeros(len(sequences))
    for batch in ways.batches(way, sequences, BUDGET):
        found = ways.run(model, head, batch, "head")["logprob"]
        sums.index_add_(0, owner[torch.from_numpy(batch.slots)], found)
    return sums


def padded(items: Sequence[TokenSequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and which next tokens belong to responses."""
    width = max(len(item) for item in items)
    ids, mask = torch.zeros(len(items), width, dtype=torch.long), torch.zeros(len(items), width)
    answers = torch.zeros(len(items), width - 1)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.tensor([*item.prompt, *item.response])
        mask[row, : len(item)] = 1
        answers[row, len(item.prompt) - 1 : len(item) - 1] = 1
    return ids, mask.long(), answers


def by_type(sequences: Sequence[TokenSequence], size: int) -> list[list[int]]:
    """Batches of one type each."""
    found = []
    for place in range(TYPES):
        mine = [index for index, item in enumerate(sequences) if item.type == place]
        found += [mine[start : start + size] for start in range(0, len(mine), size)]
    return found


def authors(model: PreTrainedModel, sequences: Sequence[TokenSequence], size: int) -> Tensor:
    """The paper's pass as described: a type at a time, full float32 distributions, a one-hot."""
    sums = torch.zeros(len(sequences))
    for members in by_type(sequences, size):
        ids, mask, answers = padded([sequences[index] for index in members])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        log_probs = logits.log_softmax(-1)
        one_hot = F.one_hot(ids[:, 1:], logits.shape[-1])
        token = (log_probs * one_hot).sum(-1)
        probs = log_probs.exp()
        best = log_probs.max(-1).values
        energy, square = (probs - one_hot).norm(dim=-1), (probs**2).sum(-1)
        del best, energy, square
        sums[members] = (token * answers).sum(-1)
    return sums


def trl(model: PreTrainedModel, sequences: Sequence[TokenSequence], size: int) -> Tensor:
    """Padded batches and the log-prob helper that TRL's trainers evaluate with."""
    from trl.trainer.utils import selective_log_softmax

    sums = torch.zeros(len(sequences))
    for members in by_type(sequences, size):
        ids, mask, answers = padded([sequences[index] for index in members])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        token = selective_log_softmax(logits, ids[:, 1:])
        sums[members] = (token * answers).sum(-1).float()
    return sums


def floor_seconds(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> float:
    """Matrix products of the unique tokens at the rate that this machine reaches just now."""
    config: Any = model.config
    head: Tensor = cast(Any, model).get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2 and len(p) != len(head))
    prompts = {item.probe: len(item.prompt) for item in sequences}
    answers = sum(len(item.response) for item in sequences)
    tokens = sum(prompts.values()) + answers - len(sequences)
    x = torch.randn(1024, config.hidden_size, dtype=head.dtype)
    weight = torch.randn(4096, config.hidden_size, dtype=head.dtype)
    out = torch.empty(1024, 4096, dtype=head.dtype)
    best = min(clocked(lambda: torch.mm(x, weight.T, out=out)) for _ in range(10))
    rate = 2 * 1024 * 4096 * config.hidden_size / best
    return float(2 * (tokens * body + answers * head.numel()) / rate)


def clocked(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory(field: str) -> float:
    """A field of this process's memory status, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(call: Callable[[], Tensor], result: Result | None) -> Result:
    """One more round of a contender."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start = time.perf_counter()
    sums = call()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    if result is None:
        return Result([seconds], peak, sums)
    return Result([*result.seconds, seconds], max(peak, result.peak_mib), sums)


@click.command()
@click.option("--model", "name", type=click.Choice(["smollm2", *RANDOM]), default="smollm2")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="typical")
@click.option("--prompts", type=int, default=8)
@click.option("--rounds", type=int, default=3)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--sizes", default="1,4,8", help="Batch sizes of the other ways.")
@torch.no_grad()
def main(name: str, shape: str, prompts: int, rounds: int, dtype: str, sizes: str) -> None:
    """Measure every contender, a round at a time, and print a table and a line of JSON."""
    model = load(name, getattr(torch, dtype))
    sequences = make_sequences(prompts, SHAPES[shape], model.config.vocab_size)
    contenders: dict[str, Callable[[], Tensor]] = {
        "forcegauge, shared": lambda: ours(model, sequences, "shared"),
        "forcegauge, cached": lambda: ours(model, sequences, "cached"),
    }
    for size in (int(text) for text in sizes.split(",")):
        contenders[f"authors' way, batch {size}"] = partial(authors, model, sequences, size)
        contenders[f"TRL's helper, batch {size}"] = partial(trl, model, sequences, size)
    ours(model, sequences[:TYPES], "shared")
    results: dict[str, Result] = {}
    floors = []
    for _ in range(rounds):
        floors.append(floor_seconds(model, sequences))
        for label, call in contenders.items():
            results[label] = measured(call, results.get(label))
    report(f"{name}, {shape}, {prompts} prompts, {dtype}", results, statistics.median(floors))


def report(title: str, results: dict[str, Result], floor: float) -> None:
    """The table, and the same as JSON."""
    first = next(iter(results.values()))
    base = statistics.median(first.seconds)
    table = Table("way", "seconds", "times ours", "peak MiB", "differs by (nats)", title=title)
    rows = []
    for label, result in results.items():
        seconds = statistics.median(result.seconds)
        apart = float((result.sums - first.sums).abs().max())
        rows.append([label, seconds, seconds / base, result.peak_mib, apart])
        table.add_row(
            label,
            f"{seconds:.2f}",
            f"{seconds / base:.2f}",
            f"{result.peak_mib:.0f}",
            f"{apart:.1e}",
        )
    table.add_row("floor of matrix products", f"{floor:.2f}", f"{floor / base:.2f}", "", "")
    Console().print(table)
    click.echo(json.dumps({"case": title, "floor_seconds": floor, "rows": rows}))


if __name__ == "__main__":
    main()
