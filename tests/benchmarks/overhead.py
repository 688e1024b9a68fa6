"""What the agent costs a training of SmolLM2, timed from outside; 25 minutes on two quiet cores.

    python -m tests.benchmarks.overhead -o build/overhead.json
    python -m tests.benchmarks.overhead_page build/overhead.json

One model is trained by a plain loop. After the dense early probes blocks of steps with the agent
alternate with blocks without it, so that both see the same machine. Three things are timed by this
program's own clock: the calls of the agent, the steps during which it reads forces against those
beside them, and all other steps with it against those without (medians of neighbouring blocks).
The model, the data and the budget of 1 % are real, the probes many and short: long ones would
stand an hour apart. The first two are timed as they are; the third is a difference, and its error
is what the benchmark can resolve.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median, stdev
from typing import Any

import click
import torch
from torch import Tensor, nn

from forcegauge.gauge import ForceGauge
from forcegauge.pairs_input import read_pairs
from forcegauge.probes import Probe, ProbeSet
from tests.benchmarks.measuring import memory, release_memory

PROMPT_TOKENS, RESPONSE_TOKENS = 8, 6
WITH, WITHOUT = 40, 10
"""Steps of a block; few without, for a pause is what the agent sees of them."""
EVERY = 50
QUIET_STEPS = 20
MIB = 1 << 20


@dataclass
class Found:
    """Seconds of the steps after the early probes, and what the agent says of itself.

    ``plain``: steps without the agent, ``ordinary``: steps with it, ``reading``: those of them at
    which forces were read; per block. ``calls``: every call of the agent.
    """

    plain: list[list[float]] = field(default_factory=list)
    ordinary: list[list[float]] = field(default_factory=list)
    reading: list[list[float]] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    probes: list[dict[str, float]] = field(default_factory=list)
    early_seconds: float = 0.0
    early_probes: int = 0
    peak_without_mib: float = 0.0
    peak_with_mib: float = 0.0
    own_ratio: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Ratio of step times and its parts, as shares of the training; its standard error."""
        pairs = list(zip(self.ordinary, self.plain, strict=True))
        apart = [median(a) / median(b) - 1 for a, b in pairs if a and b]
        steps = sum(map(len, self.ordinary)) + sum(map(len, self.reading))
        trained = steps * median(t for block in self.plain for t in block)
        rows = zip(self.reading, self.ordinary, strict=True)
        extra = sum(t - median(block) for slow, block in rows for t in slow if block)
        parts = {
            "calls": sum(self.calls) / trained,
            "reading": extra / trained,
            "hooks": median(apart),
        }
        error = 1.25 * stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        return {
            "ratio": 1 + sum(parts.values()),
            "timed": 1 + parts["calls"] + parts["reading"],
            "parts": parts,
            "resolution": 2 * error,
            # the agent's is of all time, the ratio is over the training's
            "own_ratio": 1 + self.own_ratio / (1 - self.own_ratio),
            "steps": steps,
            "step_seconds": median(t for block in self.plain for t in block),
            "probes": self.probes,
            "early_probes": self.early_probes,
            "early_seconds": self.early_seconds,
            "peak_mib": {"without": self.peak_without_mib, "with": self.peak_with_mib},
        }


@dataclass
class Loop:
    """A training that can be watched; each step gives its seconds."""

    model: nn.Module
    batches: Iterator[Tensor]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def step(self) -> float:
        ids = next(self.batches)
        start = time.perf_counter()
        self.model(input_ids=ids, labels=ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


class Watched:
    """A loop with an agent that can be taken off and put on again."""

    def __init__(self, loop: Loop, gauge: ForceGauge) -> None:
        self.loop, self.gauge, self.done = loop, gauge, 0
        self.capture: Any = None
        gauge.step(loop.model, 0)
        gauge.attach(loop.model)
        self.capture = gauge._observed._capture

    @property
    def scored(self) -> int:
        """How many probes the last look scored."""
        return self.gauge._journal.state.probes_scored or 0

    def step(self) -> tuple[float, bool, float, bool]:
        """Seconds of a step, whether forces were read, seconds of the call, whether it probed."""
        read, before = self.gauge._observed.observing, self.gauge.judgement
        seconds = self.loop.step()
        self.done += 1
        start = time.perf_counter()
        self.gauge.step(self.loop.model, self.done)
        called = time.perf_counter() - start
        return seconds, read, called, self.gauge.judgement is not before

    def without(self, steps: int) -> list[float]:
        """Seconds of steps without the agent."""
        self.capture.detach()
        found = [self.loop.step() for _ in range(steps)]
        self.capture.attach(self.loop.model)
        return found


def measure(loop: Loop, gauge: ForceGauge, late: int, block: tuple[int, int]) -> Found:
    """Train until so many probes came after the early ones."""
    found = Found()
    for _ in range(5):
        loop.step()
    found.peak_without_mib = _peak(loop, lambda: [loop.step() for _ in range(QUIET_STEPS)])
    found.peak_with_mib = _peak(loop, lambda: _watch(loop, gauge, found, late, block))
    return found


def _watch(loop: Loop, gauge: ForceGauge, found: Found, late: int, block: tuple[int, int]) -> None:
    began = time.perf_counter()
    watched = Watched(loop, gauge)
    found.early_seconds, found.early_probes = time.perf_counter() - began, 1
    while gauge._pace._counted is None:
        *_, called, probed = watched.step()
        found.early_seconds += called
        found.early_probes += probed
    while len(found.probes) < late:
        ordinary: list[float] = []
        reading: list[float] = []
        for _ in range(block[0]):
            seconds, read, called, probed = watched.step()
            (reading if read else ordinary).append(seconds)
            found.calls.append(called)
            if probed:
                click.echo(
                    f"step {watched.done}: {watched.scored} probes in {called:.2f} s", err=True
                )
                facts = {"step": watched.done, "probes": watched.scored, "seconds": called}
                found.probes.append(facts)
        found.ordinary.append(ordinary)
        found.reading.append(reading)
        found.plain.append(watched.without(block[1]))
    found.own_ratio = gauge._pace.overhead_ratio or 0.0
    gauge.close()


def _peak(loop: Loop, call: Any) -> float:
    device = next(loop.model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) / MIB
    release_memory()
    call()
    return memory("VmHWM")


def table(facts: dict[str, Any]) -> str:
    """The figures in words."""
    parts, peak = facts["parts"], facts["peak_mib"]
    rows = [
        ("ratio of step times, after the early probes", f"{facts['ratio']:.4f}"),
        ("the same without what is not timed but a difference", f"{facts['timed']:.4f}"),
        ("of it calls of the agent, probes among them", f"{parts['calls']:.4f}"),
        ("of it reading forces", f"{parts['reading']:.4f}"),
        ("of it all else, steps with against without", f"{parts['hooks']:+.4f}"),
        ("resolution (twice the standard error of the last)", f"{facts['resolution']:.4f}"),
        ("the agent's own word", f"{facts['own_ratio']:.4f}"),
        ("a step", f"{facts['step_seconds']:.3f} s"),
        ("late probes", f"{len(facts['probes'])} in {facts['steps']} steps"),
        (
            "early probes, baseline included",
            f"{facts['early_probes']}, {facts['early_seconds']:.1f} s",
        ),
        ("peak memory without", f"{peak['without']:.0f} MiB"),
        ("peak memory with", f"{peak['with']:.0f} MiB ({peak['with'] - peak['without']:+.0f})"),
    ]
    return "\n".join(f"{name:<52}{value}" for name, value in rows)


def smollm2(probes: int) -> tuple[nn.Module, Any, ProbeSet, list[Tensor]]:
    """The model, its tokenizer, short probes of the demo's pairs, and batches of one of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from forcegauge.demo.model import demo_model
    from tests.benchmarks.finetunes import DATA, encoded

    pairs = read_pairs(str(DATA / "pairs.jsonl")).pairs
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [Probe(f"p{i}", p.prompt, _two(p.responses)) for i, p in enumerate(pairs[:probes])]
    batches = [
        torch.tensor([[*a, *b]]).to(device) for a, b in (encoded(p, "chosen") for p in pairs)
    ]
    return model.train().to(device), tokenizer, ProbeSet(tuple(rows)), batches


def _two(responses: Any) -> dict[str, str]:
    return {name: responses[name] for name in ("chosen", "rejected")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/overhead.json"))
    # a whole round of eighths: greedy outputs are decoded once in it
    parser.add_argument("--late", type=int, default=8, help="probes after the early ones")
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.01)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    began = time.perf_counter()
    model, tokenizer, probes, batches = smollm2(given.probes)
    with tempfile.TemporaryDirectory() as folder:
        gauge = ForceGauge(
            probes,
            tokenizer,
            directory=folder,
            every=EVERY,
            budget=given.budget,
            max_prompt_tokens=PROMPT_TOKENS,
            max_response_tokens=RESPONSE_TOKENS,
            port=0,
        )
        found = measure(Loop(model, cycle(batches)), gauge, given.late, (WITH, WITHOUT))
    facts = {**found.facts(), "failures": dict(gauge.failures), "budget": given.budget}
    facts |= {"minutes": (time.perf_counter() - began) / 60, "threads": torch.get_num_threads()}
    facts |= {"set": given.probes, "torch": torch.__version__, "machine": platform.machine()}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    click.echo(table(facts))


if __name__ == "__main__":
    main()
