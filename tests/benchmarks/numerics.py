"""How exact scores are: each number format against float64, layout noise, and the formulas.

OMP_NUM_THREADS=2 python -m tests.benchmarks.numerics    (about two minutes on two cores)

Prints the tables of ``agent/numerics.md``. The model is SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forcegauge.demo.model import demo_model
from forcegauge.loading import load_model, load_tokenizer
from forcegauge.probes import Probe, ProbeSet
from forcegauge.reductions import token_statistics
from forcegauge.scorer import Scorer

Array = npt.NDArray[np.float64]

FORMATS = ("float32", "bfloat16", "float16")
EDGES = (0.0, -1.0, -3.0, -6.0, -10.0, -15.0, -np.inf)
PAIRS = (
    ("Why is the sky blue?", "Sunlight is scattered by air, and blue light more than red light."),
    ("Name a warm drink.", "Tea is a warm drink that many people have in the afternoon."),
    ("How do plants eat?", "They take in light, water and air, and make sugar of them."),
    ("What is a bridge?", "A bridge carries a road or a railway over a river or a valley."),
    ("Who bakes bread?", "A baker mixes flour, water, salt and yeast and bakes the dough."),
    ("When does it rain?", "It rains when drops in a cloud have grown too heavy to stay up."),
)


def probes(tokenizer: Any) -> ProbeSet:
    """Answers that fit, that fit another prompt, and words and tokens in no order at all."""
    draw = random.Random(0)
    found = []
    for place, (prompt, answer) in enumerate(PAIRS):
        words = answer.split()
        draw.shuffle(words)
        noise = [draw.randrange(1000, 40000) for _ in range(16)]
        responses = {
            "chosen": answer,
            "other_prompt": PAIRS[(place + 1) % len(PAIRS)][1],
            "shuffled": " ".join(words),
            "random_words": tokenizer.decode(noise),
        }
        messages = ({"role": "user", "content": prompt},)
        found.append(Probe(f"p{place}", messages, responses))
    return ProbeSet(tuple(found))


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, its norms too, which otherwise work in float32."""
    model.double()
    for part in model.modules():
        if type(part).__name__.endswith("RMSNorm"):
            part.forward = _norm(part)
    return model


def _norm(part: nn.Module) -> Callable[[Tensor], Tensor]:
    weight: Any = part.weight
    epsilon: Any = part.variance_epsilon
    return lambda x: weight * x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()


@torch.no_grad()
def truth(model: PreTrainedModel, scorer: Scorer) -> Array:
    """Log-probs of all response tokens in float64, a sequence at a time."""
    found = []
    for item in scorer.sequences:
        ids = torch.tensor([[*item.prompt, *item.response]])
        logits = model(input_ids=ids).logits[0, len(item.prompt) - 1 : -1]
        targets = torch.tensor(item.response)[:, None]
        found.append(logits.double().log_softmax(-1).gather(1, targets)[:, 0].numpy())
    return np.concatenate(found)


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown, and an empty one."""
    for line in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(line)} |"
    yield ""


def by_depth(wanted: Array, found: dict[str, Array]) -> Iterator[str]:
    """Errors of each format by the true log-prob."""
    rows = []
    for high, low in itertools.pairwise(EDGES):
        inside = (wanted <= high) & (wanted > low)
        cells = [f"{high:g} to {low:g}", str(int(inside.sum()))]
        for values in found.values():
            error = (values - wanted)[inside]
            cells.append(f"{rms(error):.1e} / {np.abs(error).max():.1e}" if len(error) else "")
        rows.append(cells)
    return table(("log-prob (nats)", "tokens", *found), rows)


def by_response(scorer: Scorer, wanted: Array, found: dict[str, Array]) -> Iterator[str]:
    """Errors of per-response means, and of a type's mean over its responses."""
    lengths = np.array([len(item.response) for item in scorer.sequences])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    place = np.array([item.type for item in scorer.sequences])
    rows = []
    for name, values in found.items():
        means = np.add.reduceat(values - wanted, starts) / lengths
        types = np.array([means[place == index].mean() for index in np.unique(place)])
        cells = (rms(means), np.abs(means).max(), np.abs(types).max())
        rows.append([name, *(f"{cell:.1e}" for cell in cells)])
    return table(("weights", "a response, RMS", "largest", "a type's mean, largest"), rows)


def noises(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """Layout noise by type."""
    types = list(next(iter(found.values())))
    rows = [[name, *(f"{noise[each]:.1e}" for each in types)] for name, noise in found.items()]
    return table(("weights", *types), rows)


def cases() -> dict[str, Tensor]:
    """Float32 logits [64, 4096] on which naive formulas fail."""
    draw = torch.Generator().manual_seed(0)
    plain = torch.randn(64, 4096, generator=draw)
    peaked, shifted, masked = plain.clone(), plain * 8 + 1e4, plain.clone()
    peaked[:, 7] = 40.0
    masked[:, ::2] = -torch.inf
    return {"plain": plain, "peaked by 40": peaked, "shifted by 1e4": shifted, "half -inf": masked}


def textbook(z: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The formulas as they are written, in the type of the logits."""
    p = z.exp() / z.exp().sum(1, keepdim=True)
    one_hot = torch.zeros_like(p).scatter_(1, targets[:, None], 1.0)
    return {
        "logprob": p.gather(1, targets[:, None])[:, 0].log(),
        "log_rest": (1 - p.max(1).values).log(),
        "entropy": -(p * p.log()).sum(1),
        "residual_norm": (p - one_hot).norm(dim=1),
    }


def reference(z: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The same in float64, in forms that lose nothing there."""
    z = z.double()
    top = z.max(1, keepdim=True)
    e = (z - top.values).exp()
    rest = e.scatter(1, top.indices, 0.0).sum(1)
    log_s = rest.log1p()[:, None]
    log_p = z - top.values - log_s
    p = log_p.exp()
    others = p.scatter(1, targets[:, None], 0.0)
    return {
        "logprob": log_p.gather(1, targets[:, None])[:, 0],
        "log_rest": rest.log() - log_s[:, 0],
        "entropy": -torch.where(p > 0, p * log_p, 0.0).sum(1),
        "residual_norm": torch.hypot(others.sum(1), others.norm(dim=1)),
    }


def worst(found: Tensor, wanted: Tensor, *, relative: bool) -> str:
    """The largest error."""
    scale = wanted.abs().clamp_min(1e-300) if relative else torch.ones(())
    error = float(((found.double() - wanted).abs() / scale).max())
    return f"{error:.0e}" if np.isfinite(error) else "nan or inf"


def formulas() -> Iterator[str]:
    """Largest errors: ours, then the textbook's."""
    rows = []
    for name, z in cases().items():
        targets = torch.arange(64) * 2 + 1
        true, ours = reference(z, targets), token_statistics(z.clone(), targets)
        naive = textbook(z, targets)
        cells = []
        for each in true:
            norm = each == "residual_norm"
            both = (worst(found[each], true[each], relative=norm) for found in (ours, naive))
            cells.append(" / ".join(both))
        rows.append([name, *cells])
    return table(("logits", "log-prob", "log-rest", "entropy", "residual norm"), rows)


@click.command()
def main() -> None:
    """Measure all and print it as Markdown."""
    torch.manual_seed(0)
    folder = str(demo_model())
    tokenizer = load_tokenizer(folder)
    probe_set = probes(tokenizer)
    first = Scorer(probe_set, tokenizer)
    wanted = truth(exact(load_model(folder)), first)
    found: dict[str, Array] = {}
    noise: dict[str, dict[str, float]] = {}
    for name in FORMATS:
        model, scorer = load_model(folder, dtype=name), Scorer(probe_set, tokenizer)
        found[name] = scorer.score(model).per_token.values["logprob"].astype(np.float64)
        noise[name] = scorer.noise(model)
    for lines in (
        by_depth(wanted, found),
        by_response(first, wanted, found),
        noises(noise),
        formulas(),
    ):
        click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
