"""Scoring side by side, in alternation: this package, the authors' way, TRL, lm-eval, floors.

make bench-scoring   # every case, then agent/scoring.md and its picture (about 50 minutes)
python -m tests.benchmarks.scoring --quick
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from forcegauge import head as heads
from forcegauge import ways
from forcegauge.encoding import TokenSequence
from forcegauge.head import Head
from forcegauge.reductions import CHUNK, Statistics, slices
from forcegauge.scorer import TOKEN_BUDGET
from tests.benchmarks import scoring_memory, scoring_page
from tests.benchmarks.measuring import Row, clocked, measure

TYPES = 12
SHAPES = {"tiny": (16, 12), "short": (64, 48), "typical": (128, 96), "long": (1024, 128)}
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
PRODUCTS = {"aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "aten::bmm"}


@dataclass(frozen=True)
class Case:
    """A model, a shape of probes and a type; batch sizes that the other ways try on ``tried``
    responses, to go on with the fastest."""

    model: str
    shape: str
    dtype: str
    prompts: int
    rounds: int
    sizes: tuple[int, ...] = (1, 4, 8)
    tried: int = 8


CASES = [
    Case("smollm2", "typical", "float32", prompts=3, rounds=2),
    Case("smollm2", "short", "float32", prompts=3, rounds=2),
    Case("smollm2", "long", "float32", prompts=1, rounds=1, sizes=(1, 4), tried=4),
    Case("smollm2", "typical", "bfloat16", prompts=3, rounds=2),
    Case("qwen", "typical", "float32", prompts=1, rounds=1, sizes=(1, 4), tried=4),
    Case("qwen", "short", "float32", prompts=1, rounds=1, sizes=(1, 4), tried=4),
    Case("qwen", "long", "float32", prompts=1, rounds=1, sizes=(1,), tried=1),
    Case("gpt2", "typical", "float32", prompts=1, rounds=2),
    Case("gpt2", "short", "float32", prompts=2, rounds=2),
    Case("gpt2", "long", "float32", prompts=1, rounds=1, sizes=(1, 4), tried=4),
]
QUICK = [Case("smollm2", "tiny", dtype, 1, 1, (1, 4), 4) for dtype in ("float32", "bfloat16")]


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


def ours(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], way: ways.Way, head: Head
) -> Tensor:
    """This package, every statistic."""
    owner = torch.cat([torch.full((len(s.response),), i) for i, s in enumerate(sequences)])
    sums = torch.zeros(len(sequences))
    for batch in ways.batches(way, sequences, TOKEN_BUDGET):
        found = ways.run(model, head, batch, "head")["logprob"]
        sums.index_add_(0, owner[torch.from_numpy(batch.slots)], found)
    return sums


class BareHead(Head):
    """The head's product alone, for what a forward of the same tokens takes."""

    def statistics(self, hidden: Tensor, targets: Tensor) -> Statistics:
        """No statistics: logits are made and dropped."""
        for part in slices(len(hidden), CHUNK):
            self.raw(hidden[part])
        return {"logprob": torch.zeros(len(targets))}


class MarkedHead(Head):
    """The head with its time marked in a profile."""

    def statistics(self, hidden: Tensor, targets: Tensor) -> Statistics:
        """As they are."""
        with record_function("head"):
            return super().statistics(hidden, targets)


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


def by_type(sequences: Sequence[TokenSequence], size: int) -> Iterator[list[int]]:
    """Full batches, a type after the other; where prompts are few, a batch mixes types."""
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].type)
    return (order[part] for part in slices(len(order), size))


def authors(model: PreTrainedModel, sequences: Sequence[TokenSequence], size: int) -> Tensor:
    """The paper's pass as described: in order of type, full float32 distributions, a one-hot."""
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


def harness(model: PreTrainedModel, sequences: Sequence[TokenSequence], size: int) -> Tensor:
    """lm-evaluation-harness' loglikelihood requests, already in tokens."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=2048)
    requests = [(None, list(item.prompt), list(item.response)) for item in sequences]
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return torch.tensor([total for total, _ in answers])


OTHERS: dict[str, Callable[[PreTrainedModel, Sequence[TokenSequence], int], Tensor]] = {
    "authors": authors,
    "TRL": trl,
    "lm-eval": harness,
}


def floor_seconds(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> float:
    """Products with weights for the unique tokens, at the rate that `torch.mm` reaches just now."""
    config: Any = model.config
    head: nn.Linear = cast(Any, model).get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    body = sum(layer.weight.numel() for layer in layers)
    prompts = {item.probe: len(item.prompt) for item in sequences}
    answers = sum(len(item.response) for item in sequences)
    tokens = sum(prompts.values()) + answers - len(sequences)
    x = torch.randn(1024, config.hidden_size, dtype=head.weight.dtype)
    weight = torch.randn(4096, config.hidden_size, dtype=head.weight.dtype)
    out = torch.empty(1024, 4096, dtype=head.weight.dtype)
    best = min(clocked(lambda: torch.mm(x, weight.T, out=out)) for _ in range(10))
    rate = 2 * 1024 * 4096 * config.hidden_size / best
    return float(2 * (tokens * body + answers * head.weight.numel()) / rate)


def shares_of(run: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of one pass, by a profile."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    parts = dict.fromkeys(("products", "attention", "reduction", "other"), 0.0)
    for event in found.events():
        parts[_part(event)] += event.self_cpu_time_total
    total = sum(parts.values())
    return {name: spent / total for name, spent in parts.items()}


def _part(event: Any) -> str:
    if event.name in PRODUCTS:
        return "products"
    if event.name.startswith("aten::_scaled_dot_product"):
        return "attention"
    while event is not None:
        if event.name == "head":
            return "reduction"
        event = event.cpu_parent
    return "other"


@dataclass(frozen=True)
class Prepared:
    """A model and the sequences that every way scores; ``lengths`` are of the responses."""

    model: PreTrainedModel
    head: Head
    sequences: list[TokenSequence]
    lengths: Tensor


def prepare(model: str, shape: str, dtype: str, prompts: int) -> Prepared:
    """What a case needs."""
    loaded = load(model, getattr(torch, dtype))
    vocabulary = heads.text_config(loaded).vocab_size
    sequences = make_sequences(prompts, SHAPES[shape], vocabulary)
    lengths = torch.tensor([len(item.response) for item in sequences])
    return Prepared(loaded, heads.head_of(loaded), sequences, lengths)


def own_calls(of: Prepared) -> dict[str, Callable[[], Tensor]]:
    """This package's ways, and the forward that they cannot do without."""
    bare = BareHead(of.head.module, of.head.scale, of.head.cap)
    return {
        "shared": partial(ours, of.model, of.sequences, "shared", of.head),
        "cached": partial(ours, of.model, of.sequences, "cached", of.head),
        "bare forward": partial(ours, of.model, of.sequences, "shared", bare),
    }


def run_case(case: Case, done: Callable[[str], None]) -> dict[str, Any]:
    """Every contender of a case: batch sizes tried, then rounds in alternation, then a profile."""
    of = prepare(case.model, case.shape, case.dtype, case.prompts)
    few = sorted(of.sequences, key=lambda item: item.type)[: case.tried]
    ours(of.model, few, "shared", of.head)
    calls = own_calls(of)
    rows = {name: Row(name) for name in calls}
    for name, way in OTHERS.items():
        tried = {size: clocked(partial(way, of.model, few, size)) / len(few) for size in case.sizes}
        best = min(tried, key=lambda size: tried[size])
        rows[name] = Row(name, best, tried=tried)
        calls[name] = partial(way, of.model, of.sequences, best)
        done(f"{case.model}, {case.shape}: {name}")
    floors = Row("matrix products")
    for _ in range(case.rounds):
        floors.seconds.append(floor_seconds(of.model, of.sequences))
        base = None
        for name, call in calls.items():
            found = measure(rows[name], call, of.lengths, None if name == "bare forward" else base)
            base = found if base is None else base
            done(f"{case.model}, {case.shape}: {name}")
    marked = MarkedHead(of.head.module, of.head.scale, of.head.cap)
    parts = shares_of(partial(ours, of.model, of.sequences, "shared", marked))
    sizes = {name: row.batch for name, row in rows.items() if row.batch is not None}
    for name, mib in scoring_memory.peaks(case, sizes).items():
        rows[name].peak_mib = mib
    done(f"{case.model}, {case.shape}: memory")
    measured = [asdict(row) for row in (*rows.values(), floors)]
    return {**asdict(case), "rows": measured, "shares": parts, **machine()}


def machine() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"threads": torch.get_num_threads(), "cpu": capability, "torch": torch.__version__}


def steps(cases: Sequence[Case]) -> int:
    """Contender runs of some cases, for the progress bar."""
    return sum(1 + len(OTHERS) + case.rounds * (len(OTHERS) + 3) for case in cases)


def measured(results: Path) -> list[Case]:
    """The cases of a file of results, where an interrupted run left one."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = [json.loads(line) for line in lines]
    known = [{field.name: row[field.name] for field in fields(Case)} for row in rows]
    return [Case(**{**each, "sizes": tuple(each["sizes"])}) for each in known]


def quiet() -> None:
    """No library's own messages."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bar()


@click.command()
@click.option("--quick", is_flag=True, help="Two tiny cases; shows that it works.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("build/scoring.jsonl"))
@click.option("--keep", is_flag=True, help="Measure only the cases that RESULTS has not.")
@click.option("--page", type=click.Path(path_type=Path), help="Folder to write the page into.")
@torch.no_grad()
def main(quick: bool, results: Path, keep: bool, page: Path | None) -> None:
    """Measure every case, a line of JSON each, and write the page."""
    quiet()
    results.parent.mkdir(parents=True, exist_ok=True)
    if not keep:
        results.unlink(missing_ok=True)
    done = measured(results)
    cases = [case for case in (QUICK if quick else CASES) if case not in done]
    text = TextColumn("{task.description:<32}")
    columns = (text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=1800) as bar:
        task = bar.add_task("", total=steps(cases))
        for case in cases:
            found = run_case(case, lambda text: bar.update(task, advance=1, description=text))
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
    click.echo(scoring_page.summary(results))
    if page is not None:
        scoring_page.write(results, page)


if __name__ == "__main__":
    main()
