"""Writes what `scoring` measured into agent/scoring.md and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

Case = Mapping[str, Any]

ROOT = Path(__file__).parents[2]
NAMES = {
    "shared": "forcegauge, shared prompts",
    "cached": "forcegauge, cached prompts",
    "authors": "the authors' way",
    "TRL": "TRL's log-prob helper",
    "lm-eval": "lm-evaluation-harness",
    "bare forward": "bare forward, same tokens",
    "matrix products": "floor of matrix products",
}
MODELS = {
    "smollm2": "SmolLM2-135M",
    "qwen": "Qwen2-like, 0.5B, 152k vocabulary",
    "gpt2": "GPT-2 shape",
}


def seconds(case: Case, way: str) -> float:
    """Median over the rounds."""
    return float(median(next(row["seconds"] for row in case["rows"] if row["way"] == way)))


def times(case: Case, way: str) -> float:
    """How many times ours a way takes."""
    return seconds(case, way) / seconds(case, "shared")


def peak(case: Case, way: str) -> float:
    """Peak memory above the weights, MiB."""
    return float(next(row["peak_mib"] for row in case["rows"] if row["way"] == way))


def title(case: Case) -> str:
    """A case in words."""
    return f"{MODELS[case['model']]}, {case['shape']}, {case['dtype']}"


Measure = Callable[[Case], float]

TYPICAL, LONG, LARGE, SHORT_WEIGHTS = (
    ("smollm2", "typical", "float32"),
    ("smollm2", "long", "float32"),
    ("qwen", "typical", "float32"),
    ("smollm2", "typical", "bfloat16"),
)
BEHIND = [
    ("times the authors' way, typical", TYPICAL, 3.3),
    ("times the authors' way, long prompts", LONG, 6.0),
    ("times the authors' way, 152k vocabulary", LARGE, 4.0),
    ("times the authors' way, bfloat16", SHORT_WEIGHTS, 5.5),
]
OTHER_GOALS: list[tuple[str, str, float, Measure]] = [
    ("share of the floor of products, typical", "≥", 0.8, lambda c: times(c, "matrix products")),
    (
        "peak memory, share of the authors', typical",
        "≤",
        0.25,
        lambda c: peak(c, "shared") / peak(c, "authors"),
    ),
]
GOAL_HEADER = ("goal", "wanted", "measured", "bare forward", "floor", "reached")


def goal_rows(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """Each goal whose case was run: what, wanted, measured, the same for the bare forward and for
    the floor of products, whether it is reached."""
    found = {(case["model"], case["shape"], case["dtype"]): case for case in cases}
    rows = []
    for what, key, wanted in BEHIND:
        if key in found:
            behind = seconds(found[key], "authors")
            ways = ("shared", "bare forward", "matrix products")
            measured = [behind / seconds(found[key], way) for way in ways]
            reached = measured[0] >= wanted
            rows.append((what, f"≥ {wanted:g}", *(f"{x:.2f}" for x in measured), _word(reached)))
    for what, sign, wanted, measure in OTHER_GOALS:
        if TYPICAL in found:
            value = measure(found[TYPICAL])
            reached = value >= wanted if sign == "≥" else value <= wanted
            rows.append((what, f"{sign} {wanted:g}", f"{value:.2f}", "", "", _word(reached)))
    return rows


def _word(reached: bool) -> str:
    return "yes" if reached else "no"


def case_table(case: Case) -> str:
    """Every way of one case."""
    lines = [
        f"### {title(case)}",
        "",
        f"Prompts: {case['prompts']}, with 12 responses each. Rounds: {case['rounds']}.",
        "",
        "| way | batch | seconds | times ours | peak MiB | grown MiB | apart, nats/token "
        "| tried: s/response |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in case["rows"]:
        way = row["way"]
        tried = ", ".join(f"{size}: {spent:.3f}" for size, spent in row["tried"].items())
        floor = way in ("bare forward", "matrix products")
        apart = "" if floor or way == "shared" else f"{row['apart_nats']:.0e}"
        memory = f"{row['peak_mib']:.0f} | {row['grown_mib']:.0f}"
        memory = " | " if way == "matrix products" else memory
        lines.append(
            f"| {NAMES[way]} | {row['batch'] or ''} | {seconds(case, way):.2f} "
            f"| {times(case, way):.2f} | {memory} | {apart} | {tried} |"
        )
    return "\n".join(lines)


def shares_table(cases: Sequence[Case]) -> str:
    """Where the time of our pass goes."""
    lines = ["| case | products | attention | reduction | other |", "|---|--:|--:|--:|--:|"]
    for case in cases:
        parts = " | ".join(f"{part:.0%}" for part in case["shares"].values())
        lines.append(f"| {title(case)} | {parts} |")
    return "\n".join(lines)


def rendered(cases: Sequence[Case]) -> str:
    """The page as Markdown."""
    rows = [GOAL_HEADER, ("---", "--:", "--:", "--:", "--:", "---"), *goal_rows(cases)]
    goals = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    first = cases[0]
    tables = "\n\n".join(case_table(case) for case in cases)
    return f"""# What scoring costs

Made by `make bench-scoring`: {first["threads"]} threads ({first["cpu"]}), PyTorch \
{first["torch"]}, all in one process, ways in alternation, medians of the rounds. Every way scores \
the same token sequences; lengths are spread by a quarter around short 64 + 48, typical 128 + 96, \
long 1024 + 128 tokens of prompt and response. The other ways go on with the batch size that is \
fastest on a few responses ("tried").

![Time of each way as a multiple of ours](pictures/scoring.png)

{goals}

*Bare forward* and *floor*: what would have been measured if ours took no longer than the model's \
own forward of the same tokens without any statistic, or than its products with weights alone, at \
the rate of this processor. A goal above the first is out of reach for any scoring that leaves \
the model's forward as it is, one above the second for any at all. All of them depend on how much \
slower a processor is at the authors' passes over memory than at products.

## Cases

*The authors' way*: written afresh from the paper's description, in order of response type (a \
batch takes in the next type where prompts are fewer than its size), full \
float32 distributions, a one-hot of the vocabulary. *TRL*: padded batches and its \
`selective_log_softmax`. *lm-evaluation-harness*: `HFLM`'s loglikelihood requests in tokens, its \
own order and batches. Both return the log-prob alone; ours returns every statistic. *Floor*: \
products of the weights with each unique token once, at the rate `torch.mm` reached just then; \
attention is not in it. Ours makes its float32 products with oneDNN \
(`forcegauge/products.py`), the floor and the other ways with PyTorch's own choice, MKL: ours can \
be under the floor, and part of its lead in float32 is the library; in bfloat16 all use the same. \
*Bare forward*: our packed rows with the head's product and no statistics. *Peak*: the most \
memory held above what stood before, the weights among it, in a process whose allocator gives \
freed memory back at once; *grown*: the most that the process grew by with glibc's own settings, \
which keep freed memory for later. *Apart*: \
largest difference of a response's mean log-prob per token from ours; in bfloat16 batching alone \
changes logits, and TRL and lm-evaluation-harness normalise in bfloat16 too.

{tables}

## Where our time goes

Shares of one pass by PyTorch's profiler. *Products* are those with weights, *attention* the fused \
kernel, *reduction* the statistics, *other* the model's norms, activations and rotations, and the \
copies between.

{shares_table(cases)}

On CUDA a Triton kernel reduces the logits (`forcegauge/kernel.py`). It has run in Triton's \
interpreter only, not on a GPU.
"""


def read(results: Path) -> list[Case]:
    """The cases of a file of results."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def summary(results: Path) -> str:
    """Tables and goals as text."""
    cases = read(results)
    goals = "\n".join("  ".join(row) for row in goal_rows(cases))
    return "\n\n".join([*(case_table(case) for case in cases), shares_table(cases), goals])


def figure(cases: Sequence[Case]) -> Any:
    """Bars: how many times ours each way takes."""
    import plotly.graph_objects as go

    ways = ["authors", "lm-eval", "TRL", "cached", "shared", "bare forward", "matrix products"]
    colours = ["#b2182b", "#ef8a62", "#f4b183", "#92c5de", "#2166ac", "#999999", "#cccccc"]
    drawn = go.Figure(
        [
            go.Bar(
                name=NAMES[way],
                x=[title(case).replace(", ", "<br>") for case in cases],
                y=[times(case, way) for case in cases],
                text=[f"{times(case, way):.1f}" for case in cases],
                textposition="outside",
                cliponaxis=False,
                marker_color=colour,
            )
            for way, colour in zip(ways, colours, strict=True)
        ]
    )
    drawn.update_layout(
        yaxis_title="time, times ours",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 60, "r": 20, "t": 70, "b": 90},
    )
    return drawn


def write(results: Path, folder: Path = ROOT / "agent") -> None:
    """The page and its picture."""
    from tests.benchmarks.pictures import save_png

    cases = read(results)
    (folder / "scoring.md").write_text(rendered(cases))
    (folder / "pictures").mkdir(exist_ok=True)
    save_png(figure(cases), folder / "pictures" / "scoring.png", width=1200, height=520)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
def main(results: Path) -> None:
    """Write the page again from results that are there."""
    write(results)


if __name__ == "__main__":
    main()
