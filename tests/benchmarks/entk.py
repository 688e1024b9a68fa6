"""Who pushes what, side by side in one process: direction hooks and the other ways to have it.

python -m tests.benchmarks.entk --probes 96 --samples 256 -o build/entk.json
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from forcegauge.encoding import TokenSequence
from forcegauge_monitor.entk.attribution import attribute, direction
from forcegauge_monitor.entk.plan import ROWS, Plan, Work, make_plan, size_of
from forcegauge_monitor.entk.rows import all_logprobs, make_batches, response_logprobs
from forcegauge_monitor.entk.samples import probe_rows
from tests.benchmarks import entk_bergson
from tests.benchmarks.measuring import clocked, memory
from tests.benchmarks.scoring import TYPES, load, make_sequences

SHAPE = (32, 16)
"""Mean tokens of a prompt and of a response."""
BLOCK = 8
"""Gradients that the stored way holds of the probes, and as many of the samples."""
ALONE = 32
"""Samples that autograd's way is measured on; it is scaled to all of them."""
PAIRS = 4
"""Probes that torch.func's way is measured on, with one sample; it is scaled to all pairs."""

Advance = Callable[[float], object]
"""Told forward passes as they are done."""


@dataclass(frozen=True)
class Case:
    """A model, probes of `TYPES` response types, and the samples that are attributed."""

    model: nn.Module
    probes: Sequence[TokenSequence]
    samples: Sequence[TokenSequence]

    @property
    def names(self) -> list[str]:
        """All parameters; the tied head is in them once."""
        return [name for name, _ in self.model.named_parameters()]

    @property
    def numbers(self) -> int:
        """How many numbers all parameters have."""
        return sum(p.numel() for p in self.model.parameters())


@dataclass(frozen=True)
class Timing:
    """One way's cost for the whole case.

    Attributes:
        way: its name.
        seconds: of the directions and of all samples.
        peak_bytes: above what stood before.
        measured: what was run, and what is scaled from it.
        apart: largest difference to the direction hooks on what both did, relative to the
            largest value; None where it is not the same sum.
    """

    way: str
    seconds: float
    peak_bytes: int
    measured: str
    apart: float | None = None


def make_case(probes: int, samples: int) -> Case:
    """SmolLM2 with random tokens: twelve types of as many probes, and other samples."""
    model = load("smollm2", torch.float32)
    prompts = probes // TYPES + math.ceil(samples / TYPES)
    every = make_sequences(prompts, SHAPE, model.config.vocab_size)
    return Case(model, every[:probes], every[probes : probes + samples])


def means(items: Sequence[TokenSequence]) -> list[Tensor]:
    """Weights that make each sequence's mean log-prob."""
    return [torch.full((len(item.response),), 1 / len(item.response)) for item in items]


def directions_of(case: Case, advance: Advance) -> dict[str, Tensor]:
    """Each type's gradient, {parameter: [types, *shape]}, float32."""
    known = dict(case.model.named_parameters())
    made = {name: torch.empty(TYPES, *known[name].shape) for name in case.names}
    for place in range(TYPES):
        rows, weights = probe_rows(case.probes, place)
        batches = make_batches(rows, ROWS)
        found = direction(case.model, case.names, batches, weights, lambda n: advance(3 * n))
        for name, tensor in found.items():
            made[name][place] = tensor
    return made


def gradient(case: Case, item: TokenSequence) -> list[Tensor]:
    """Autograd's gradient of one sequence's mean log-prob, one tensor a parameter."""
    case.model.requires_grad_()
    mean = response_logprobs(case.model, make_batches([item], 1)[0]).mean()
    return list(torch.autograd.grad(mean, list(case.model.parameters())))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Gives a list that holds the most bytes above what stood before, once it is left."""
    Path("/proc/self/clear_refs").write_text("5")
    before, found = memory("VmRSS"), list[int]()
    yield found
    found.append(int((memory("VmHWM") - before) * 2**20))


def forward_seconds(case: Case) -> float:
    """One forward pass of a mean sequence in the batches that direction hooks take, median."""
    items = case.samples[: 4 * ROWS]
    seconds = [clocked(partial(all_logprobs, case.model, items, ROWS)) for _ in range(3)]
    return statistics.median(seconds) / len(items)


@dataclass(frozen=True)
class Done:
    """What direction hooks made: table [samples, types], directions, and both parts' seconds."""

    timing: Timing
    table: Tensor
    directions: dict[str, Tensor]
    seconds: dict[str, float]


def hooks(case: Case, advance: Advance) -> Done:
    """This package."""
    parts: dict[str, Any] = {}

    def directions() -> None:
        parts["directions"] = directions_of(case, advance)

    def samples() -> None:
        parts["table"] = attributed(case, parts["directions"], advance)

    with peak() as bytes_held:
        seconds = {"directions": clocked(directions), "samples": clocked(samples)}
    timing = Timing("direction hooks", sum(seconds.values()), bytes_held[0], "all of it", 0.0)
    return Done(timing, parts["table"], parts["directions"], seconds)


def attributed(case: Case, directions: dict[str, Tensor], advance: Advance) -> Tensor:
    """Products of all samples by direction hooks, [samples, types]."""
    batches = make_batches(case.samples, ROWS)
    told = partial(_rows, advance)
    return attribute(case.model, batches, means(case.samples), directions, told)


def _rows(advance: Advance, rows: int) -> None:
    advance(3.3 * rows)


def alone(case: Case, done: Done, advance: Advance) -> Timing:
    """The same directions, and autograd's gradient of one sample after the other."""
    part, rows = case.samples[:ALONE], list[Tensor]()
    with peak() as bytes_held:
        start = clocked(lambda: rows.extend(_products(done.directions, case, part, advance)))
    seconds = done.seconds["directions"] + start * len(case.samples) / len(part)
    held = TYPES * case.numbers * 4 + bytes_held[0]
    said = f"the same directions, and {len(part)} samples scaled to {len(case.samples)}"
    apart = difference(torch.stack(rows), done.table[: len(part)])
    return Timing("autograd, one sample at a time", seconds, held, said, apart)


def _products(
    directions: dict[str, Tensor], case: Case, items: Sequence[TokenSequence], advance: Advance
) -> Iterator[Tensor]:
    for item in items:
        pairs = zip(directions.values(), gradient(case, item), strict=True)
        yield torch.stack([d.flatten(1) @ g.flatten() for d, g in pairs]).sum(0)
        advance(3.0)


def stored(case: Case, advance: Advance) -> list[Timing]:
    """Every probe's and sample's gradient stored as a row, and the two blocks multiplied.

    One block of each is measured. What all of them would take is scaled from it, once as if
    memory held them all, once with the samples' gradients formed anew for each block of probes.
    """
    probes, samples = case.probes[:BLOCK], case.samples[:BLOCK]
    left, right = (torch.zeros(BLOCK, case.numbers) for _ in range(2))
    with peak() as bytes_held:
        form = clocked(lambda: _fill(case, left, probes, advance))
        form += clocked(lambda: _fill(case, right, samples, advance))
        product = clocked(lambda: torch.mm(left, right.T))
    each, pairs = form / (2 * BLOCK), len(case.probes) * len(case.samples)
    multiplied = product * pairs / BLOCK**2
    blocks = math.ceil(len(case.probes) / BLOCK)
    rows = len(case.probes) + len(case.samples)
    held = rows * case.numbers * 4
    said = f"{2 * BLOCK} gradients and {BLOCK**2} products, scaled"
    here = 2 * BLOCK * case.numbers * 4
    anew = len(case.probes) + blocks * len(case.samples)
    return [
        Timing("gradients stored, all held", each * rows + multiplied, held,
               f"{said}; memory told"),
        Timing(f"gradients stored, {BLOCK} probes at a time", each * anew + multiplied,
               max(here, bytes_held[0]), said),
    ]  # fmt: skip


def _fill(case: Case, into: Tensor, items: Sequence[TokenSequence], advance: Advance) -> None:
    for row, item in zip(into, items, strict=True):
        torch.cat([part.flatten() for part in gradient(case, item)], out=row)
        advance(3.0)


class Mean(nn.Module):
    """A model whose forward is one sequence's mean log-prob."""

    def __init__(self, model: nn.Module, item: TokenSequence) -> None:
        super().__init__()
        self.model = model
        self.batch = make_batches([item], 1)[0]

    def forward(self) -> Tensor:
        """Nats per token, a scalar."""
        return response_logprobs(self.model, self.batch).mean()


def pairwise(case: Case, advance: Advance) -> Timing:
    """torch.func: each sample's gradient by vjp, its product with each probe's by jvp."""
    point = {f"model.{n}": p.detach() for n, p in case.model.named_parameters()}
    made: dict[str, Any] = {}

    def backward() -> None:
        made["gradient"] = vjp(_mean(case, case.samples[0]), point)[1](torch.ones(()))[0]
        advance(3.0)

    def forward() -> None:
        for item in case.probes[:PAIRS]:
            jvp(_mean(case, item), (point,), (made["gradient"],))
            advance(4.0)

    with peak() as bytes_held, sdpa_kernel(SDPBackend.MATH):
        first, others = clocked(backward), clocked(forward) / PAIRS
    seconds = len(case.samples) * (first + len(case.probes) * others)
    pairs = len(case.samples) * len(case.probes)
    return Timing("torch.func, vjp and jvp of each pair", seconds, bytes_held[0],
                  f"{PAIRS} of {pairs} pairs, scaled by their number")  # fmt: skip


def _mean(case: Case, item: TokenSequence) -> Callable[[dict[str, Tensor]], Tensor]:
    reader = Mean(case.model, item)
    return lambda parameters: functional_call(reader, parameters, ())


def bergsons(case: Case, advance: Advance) -> Timing | str:
    """bergson's collector, its queries the types' mean gradients; or why it does not run."""
    try:
        return _bergsons(case, advance)
    except Exception as error:  # noqa: BLE001 - another project's code may fail in any way
        return f"{type(error).__name__}: {error}"


def _bergsons(case: Case, advance: Advance) -> Timing:
    made: dict[str, Any] = {}
    queries, samples = entk_bergson.prepared(case.probes, case.samples)

    def build() -> None:
        made["queries"] = entk_bergson.queries(
            case.model, queries, lambda: advance(3.0 * len(case.probes) / TYPES)
        )

    def score() -> None:
        made["table"] = entk_bergson.scores(case.model, made["queries"], samples, ROWS)
        advance(3.3 * len(case.samples))

    with peak() as bytes_held:
        seconds = clocked(build) + clocked(score)
    share = entk_bergson.share(case.model, made["queries"])
    said = f"all of it; {share:.0%} of the parameters (its linear layers without the head)"
    apart = entk_bergson.check(case.model, made, case.samples)
    return Timing(entk_bergson.label(), seconds, bytes_held[0], said, apart)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def growth(case: Case, done: Done, advance: Advance) -> dict[str, list[tuple[int, float]]]:
    """Seconds of the samples' pass against their number, and against the directions'."""
    by_samples, by_types = [], []
    for count in (1, 2, 3, 4):
        part = replace(case, samples=case.samples[: count * len(case.samples) // 8])
        seconds = clocked(partial(attributed, part, done.directions, advance))
        by_samples.append((len(part.samples), seconds))
    part = replace(case, samples=case.samples[: len(case.samples) // 4])
    for count in (1, TYPES // 3, 2 * TYPES // 3, TYPES):
        few = {name: each[:count] for name, each in done.directions.items()}
        by_types.append((count, clocked(partial(attributed, part, few, advance))))
    return {"samples": by_samples, "types": by_types}


def planned(case: Case) -> Plan:
    """What the snapshot's plan says of the case, with as much memory as it likes."""
    mean = statistics.mean(len(item) for item in (*case.probes, *case.samples))
    work = Work(
        probes={str(place): len(case.probes) // TYPES for place in range(TYPES)},
        tokens=mean,
        longest=max(map(len, (*case.probes, *case.samples))),
        longest_response=max(len(item.response) for item in (*case.probes, *case.samples)),
        samples=len(case.samples),
        kernel_probes=0, kernel_updated=0, kernel_observed=0, kernel_kinds=0, seeds=0,
        adam=False, validity=False,
    )  # fmt: skip
    return make_plan(size_of(case.model, 4), work, 1 << 50)


def floors(case: Case, forward: float) -> dict[str, float]:
    """Seconds of (3P + (2+F)U) and (3P + (3+F/T)U) forward passes."""
    probes, samples = len(case.probes), len(case.samples)
    tokens = statistics.mean(len(item) for item in case.samples)
    return {
        "a product for each direction": forward * (3 * probes + (2 + TYPES) * samples),
        "gradients formed once": forward * (3 * probes + (3 + TYPES / tokens) * samples),
    }


@contextmanager
def progress(total: float) -> Iterator[Callable[[str], Advance]]:
    """A bar over forward passes with the time left; gives each part its own `Advance`."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def part(name: str) -> Advance:
            bar.update(task, description=name)
            return lambda units: bar.advance(task, units)

        yield part


def measure(case: Case) -> dict[str, Any]:
    """All ways, one after the other, as JSON."""
    probes, samples = len(case.probes), len(case.samples)
    plan = planned(case)  # before another project's code freezes parameters
    total = 2 * 3 * probes + 3.3 * samples * (1 + 10 / 8 + 1 + 1) + 3 * (ALONE + 2 * BLOCK + 6)
    with progress(total) as part:
        forward = forward_seconds(case)
        done = hooks(case, part("direction hooks"))
        ways = [done.timing, alone(case, done, part("autograd"))]
        parts, grown = done.seconds, growth(case, done, part("growth"))
        del done
        ways += stored(case, part("stored gradients"))
        ways += [pairwise(case, part("torch.func"))]
        other = bergsons(case, part("bergson"))
    ways += [other] if isinstance(other, Timing) else []
    return {
        "probes": probes, "types": TYPES, "samples": samples, "numbers": case.numbers,
        "tokens": statistics.mean(len(item) for item in case.samples),
        "threads": torch.get_num_threads(), "forward_seconds": forward, "parts": parts,
        "floors": floors(case, forward), "growth": grown, "ways": [asdict(way) for way in ways],
        "plan": {"forwards": plan.forwards, "peak_bytes": plan.peak_bytes},
        "absent": other if isinstance(other, str) else "",
    }  # fmt: skip


@click.command()
@click.option("--probes", type=click.IntRange(min=TYPES), default=96, show_default=True)
@click.option("--samples", type=click.IntRange(min=4 * ROWS), default=256, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("build/entk.json"))
def main(probes: int, samples: int, output: Path) -> None:
    """Measure every way and write a JSON."""
    case = make_case(probes - probes % TYPES, samples)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(measure(case), indent=1) + "\n")
    click.echo(output)


if __name__ == "__main__":
    main()
