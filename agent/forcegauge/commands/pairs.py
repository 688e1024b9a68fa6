"""`forcegauge pairs`: preference pairs ranked before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcegauge.errors import InputError
from forcegauge.textfiles import check_target

if TYPE_CHECKING:
    from forcegauge.pairs import PairMeter, TokenPair
    from forcegauge.pairs_input import Pair
    from forcegauge.pairs_survey import LeftOut, Source, Survey

Window = list[tuple["Pair", "TokenPair"]]


@dataclass(frozen=True)
class Settings:
    """What every pair of one call is measured with."""

    device: str | None
    dtype: str
    max_prompt_tokens: int | None
    max_response_tokens: int | None


@click.command()
@click.argument("dataset")
@click.option("--model", required=True, metavar="DIR|NAME", help="The model before the training.")
@click.option(
    "-o", "--output", metavar="OUT.jsonl", help="The ranking.  [default: DATASET.ranked.jsonl here]"
)
@click.option("--split", metavar="NAME", help="Split of a Hub dataset.  [default: train]")
@click.option("--subset", metavar="NAME", help="Configuration of a Hub dataset that has several.")
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows shown."
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; the GPU where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
def pairs(
    dataset: str,
    model: str,
    output: str | None,
    split: str | None,
    subset: str | None,
    top: int,
    **settings: Any,
) -> None:
    """Rank the preference pairs of DATASET by how much training on them would displace.

    DATASET is a JSONL, CSV or Parquet file, a folder, or the name of a Hub dataset, in the shapes
    that TRL documents. The first pairs of the ranking are those whose chosen answer a preference
    loss such as DPO is likeliest to lower. What was interrupted goes on when called again. A page
    with the ranking is written beside OUT.
    """
    target = output or f"{Path(dataset.rstrip('/')).stem or 'pairs'}.ranked.jsonl"
    _check_output(target, dataset)
    from forcegauge.pairs_input import is_dataset
    from forcegauge.pairs_survey import Source, survey

    if is_dataset(dataset):
        click.echo(f"Loading {dataset} ...")
    source = Source(dataset, split, subset)
    looked = survey(source)
    try:
        there = measure_all(target, model, source, looked, Settings(**settings))
    except KeyboardInterrupt:
        if Path(target).exists():
            click.echo(f"{target} keeps what was measured: call again to go on.", err=True)
        raise
    _finish(target, source, model, looked, top, there)


def _check_output(target: str, dataset: str) -> None:
    check_target(target)
    if Path(target).exists() and Path(dataset).exists() and Path(dataset).samefile(target):
        raise InputError("is the dataset itself", fix="Write to another file", file=target)
    if _page_path(target) == Path(target):
        raise InputError("is where the page goes", fix="Name a .jsonl file", file=target)
    check_target(_page_path(target))


def _page_path(target: str) -> Path:
    return Path(target).with_suffix(".html")


def measure_all(target: str, name: str, source: Source, looked: Survey, settings: Settings) -> int:
    """Add a line for every pair that the file lacks; returns how many were there already.

    A few pairs are held at a time. Those that cannot be measured go to ``looked.left_out``.
    """
    from forcegauge.loading import load_model, load_tokenizer, pick_device
    from forcegauge.pairs import PairMeter, weights_hash
    from forcegauge.pairs_file import add_rows, read_measured
    from forcegauge.pairs_survey import number

    device = pick_device(settings.device)
    tokenizer = load_tokenizer(name)
    model = load_model(name, dtype=settings.dtype, device=device)
    run = [weights_hash(model), settings.max_prompt_tokens, settings.max_response_tokens]
    there = read_measured(target, name, looked, run)
    meter = None
    with _progress(looked.pairs) as advance:
        for window, passed in _windows(model, tokenizer, source.pairs(), settings, looked.left_out):
            meter = meter or PairMeter(model, [tokens for _, tokens in window])
            # Measured whole even when a part is there: other batches would change the last digits.
            known = all(there[number(pair.id)] for pair, _ in window)
            advance(passed if known else passed - len(window))
            rows = [] if known else _rows(meter, window, name, looked, run, advance)
            add_rows(target, (row for row in rows if not there[number(row["id"])]))
    if meter is None:
        fix = "Set --max-prompt-tokens and --max-response-tokens"
        raise InputError(f"no pair can be measured: {[*looked.left_out.counts][-1]}", fix=fix)
    return sum(there)


def _rows(
    meter: PairMeter,
    window: Window,
    name: str,
    looked: Survey,
    run: Sequence[object],
    advance: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    found = meter.measure([tokens for _, tokens in window])
    for (pair, _), values in zip(window, found, strict=True):
        advance(1)
        mark = looked.expected(pair.id, run)
        yield {"id": pair.id, "model": name, **asdict(values), "hash": mark}


def _windows(
    model: Any,
    tokenizer: Any,
    usable: Iterable[Pair],
    settings: Settings,
    left_out: LeftOut,
) -> Iterator[tuple[Window, int]]:
    """Neighbouring pairs of at most `TOKEN_BUDGET` tokens and how many were passed; the same in
    every call, so that a continued ranking has the numbers of one that was not interrupted."""
    from forcegauge.pairs import TOKEN_BUDGET, encode_pair, unfit

    window: Window = []
    size = passed = 0
    limits = {
        "max_prompt_tokens": settings.max_prompt_tokens,
        "max_response_tokens": settings.max_response_tokens,
    }
    for pair in usable:
        tokens = encode_pair(tokenizer, pair, **limits)
        reason = unfit(tokens, model)
        if reason:
            left_out.add(reason, pair.id)
        elif window and size + len(tokens) > TOKEN_BUDGET:
            yield window, passed
            window, size, passed = [], 0, 0
        passed += 1
        if not reason:
            window.append((pair, tokens))
            size += len(tokens)
    if window:
        yield window, passed


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Measuring pairs", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _finish(target: str, source: Source, model: str, looked: Survey, top: int, there: int) -> None:
    from rich.console import Console

    from forcegauge.pairs_file import put_in_order
    from forcegauge.pairs_report import ranking_page, ranking_table, summary
    from forcegauge.textfiles import write_whole

    ranking = put_in_order(target, top)
    texts = source.pick({row["id"] for row in (*ranking.top, *ranking.bottom)})
    console = Console(highlight=False)
    console.print(ranking_table(ranking, texts))
    notes = [summary(ranking), *_notes(looked)]
    page = _page_path(target)
    write_whole(page, ranking_page(ranking, texts, source.name, model, notes))
    before = f", {there} of them were there already" if there else ""
    click.echo(f"{target}: {ranking.count} pairs{before}. Page: {page}")
    click.echo("\n".join(notes))


def _notes(looked: Survey) -> Iterator[str]:
    for reason, count in looked.left_out.counts.items():
        first = looked.left_out.first[reason]
        yield f"Left out: {count} of {looked.rows} rows, {reason} (first: {first})."
