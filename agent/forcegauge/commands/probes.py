"""`forcegauge probes`: make a probe set, check it, look at it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from forcegauge.errors import InputError
from forcegauge.probes import Probe, ProbeSet, numbered_probes
from forcegauge.textfiles import check_target

if TYPE_CHECKING:
    from forcegauge.pairs_input import Pair, Pairs
    from forcegauge.probe_check import ProbeCheck

SHOWN_ERRORS = 10
"""Errors of a check that are printed; more are counted."""


@click.group()
def probes() -> None:
    """Build, check and show probe sets."""


@probes.command()
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="FILE", help="Probe file to write (JSONL).")
@click.option("--n", type=click.IntRange(min=1), default=64, show_default=True, help="Probes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses prompts and answers.")
@click.option("--split", metavar="NAME", help="Split of a Hub dataset.  [default: train]")
@click.option("--subset", metavar="NAME", help="Configuration of a Hub dataset that has several.")
@click.option(
    "--held-out",
    metavar="FILE|SPLIT|SHARE",
    help="Prompts that are not trained on: a file, another split, or the last share of SOURCE's "
    "rows (0.1 for a tenth).",
)
@click.option(
    "--rephrase-with", metavar="MODEL", help="Instruct model that writes missing rephrases."
)
def build(
    source: str,
    output: str,
    n: int,
    seed: int,
    split: str | None,
    subset: str | None,
    held_out: str | None,
    rephrase_with: str | None,
) -> None:
    """Make a probe set from the dataset that you train on.

    SOURCE is a JSONL, CSV or Parquet file, a folder, or the name of a Hub dataset, in the shapes
    that TRL documents. Columns chosen_rephrase, rejected_rephrase, chosen_offtopic,
    rejected_offtopic and unrelated are taken over.
    """
    from forcegauge.build import build_probes
    from forcegauge.pairs_input import is_dataset, read_pairs

    check_target(output)
    _keep_inputs(output, source, held_out)
    if is_dataset(source):
        click.echo(f"Loading {source} ...")
    found = read_pairs(source, split=split, subset=subset)
    training, unseen = _parts(found, source, subset, held_out)
    probe_set = build_probes(training, unseen, n=n, seed=seed)
    if rephrase_with:
        probe_set = _rephrased(probe_set, rephrase_with)
    probe_set.save(output)
    _print_built(output, probe_set, found, training, held_out)


def _keep_inputs(output: str, *inputs: str | None) -> None:
    for name in inputs:
        if name and Path(output).exists() and Path(name).exists() and Path(name).samefile(output):
            fix = "Write to another file"
            raise InputError("is the dataset itself", fix=fix, file=output, field="--output")


def _parts(
    found: Pairs, source: str, subset: str | None, held_out: str | None
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Training and held-out examples."""
    from forcegauge.build import split_tail
    from forcegauge.pairs_input import is_dataset, read_pairs

    if held_out is None:
        return found.pairs, ()
    if (share := _share(held_out)) is not None:
        return split_tail(found, share)
    if Path(held_out).exists() or not is_dataset(held_out):
        return found.pairs, read_pairs(held_out).pairs
    if not is_dataset(source):
        problem = f"'{held_out}' is no file and no share, and a file has no splits"
        raise InputError(problem, fix="Give a file or a share such as 0.1", field="--held-out")
    return found.pairs, read_pairs(source, split=held_out, subset=subset).pairs


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 < share < 1:
        fix = "A tenth is 0.1"
        raise InputError(f"{text} is not between 0 and 1", fix=fix, field="--held-out")
    return share


def _rephrased(probe_set: ProbeSet, name: str) -> ProbeSet:
    from forcegauge.rephrase import load_writer, missing_rephrases, with_rephrases

    wanted = len(missing_rephrases(probe_set))
    model, tokenizer = load_writer(name)
    columns = ("Rephrasing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=wanted)
        done = with_rephrases(
            probe_set, model, tokenizer, advance=lambda count: progress.advance(task, count)
        )
    if left := len(missing_rephrases(done)):
        click.echo(f"{left} of {wanted} rephrases are left out: empty, unchanged or endless.")
    return done


def _print_built(
    output: str,
    probe_set: ProbeSet,
    found: Pairs,
    training: Sequence[Pair],
    held_out: str | None,
) -> None:
    click.echo(f"{output}: {len(probe_set)} probes, hash {probe_set.hash[:12]}")
    for name in probe_set.types:
        count = sum(name in probe.responses for probe in probe_set.probes)
        click.echo(f"  {name:18}{count:6}")
    for reason, ids in found.skipped.items():
        click.echo(f"Left out: {len(ids)} of {found.rows} rows, {reason} (first: {ids[0]}).")
    if held_out is None:
        click.echo("No unseen_prompt, so no hallucination pressure: --held-out gives the prompts.")
    elif len(training) < len(found.pairs):
        cut = training[-1].row + 1
        click.echo(f"Held out: train on the first {cut} of {found.rows} rows only.")


@probes.command()
@click.argument("file")
@click.option("--tokenizer", metavar="DIR|NAME", help="Count tokens, and check the context.")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
def check(
    file: str,
    tokenizer: str | None,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
) -> None:
    """Check a probe file: counts, lengths, repeats and what the model cannot take."""
    from forcegauge.probe_check import check_probes

    probe_set = ProbeSet.load(file)
    loaded, context = _tokenizer_and_context(tokenizer) if tokenizer else (None, None)
    result = check_probes(
        file,
        loaded,
        context=context,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )
    _print_check(file, probe_set, result)
    if len(result.errors) == 1:
        raise result.errors[0]
    for error in result.errors[:SHOWN_ERRORS]:
        click.echo(f"forcegauge: {error}", err=True)
    if result.errors:
        raise InputError(f"{len(result.errors)} probes cannot be scored", file=file)


def _tokenizer_and_context(name: str) -> tuple[Any, int | None]:
    """The tokenizer and the context of the model beside it, if it says."""
    from transformers import AutoConfig

    from forcegauge.loading import load_tokenizer

    tokenizer = load_tokenizer(name)
    try:
        config = AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError):
        return tokenizer, None
    return tokenizer, getattr(config, "max_position_embeddings", None)


def _print_check(file: str, probe_set: ProbeSet, result: ProbeCheck) -> None:
    click.echo(f"{file}: {len(probe_set)} probes, hash {probe_set.hash[:12]}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("texts", "min", "median", "max", "cut"):
        table.add_column(name, justify="right")
    for name, lengths in result.lengths.items():
        table.add_row(name, str(len(lengths.values)), *lengths.quantiles, str(lengths.cut or "-"))
    Console(highlight=False).print(table)
    click.echo(f"Lengths are in {result.unit}.")
    for warning in result.warnings:
        click.echo(f"warning: {warning}")


@probes.command()
@click.argument("file")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Show this probe; may be repeated.")
@click.option("-n", type=click.IntRange(min=1), default=3, show_default=True, help="How many.")
def show(file: str, ids: tuple[str, ...], n: int) -> None:
    """Show probes as they are asked, with every response."""
    found = numbered_probes(file)
    known = {probe.id for _, probe in found}
    for name in ids:
        if name not in known:
            fix = f"There are {len(known)}, such as '{visible(found[0][1].id)}'"
            raise InputError(f"no probe has the id '{visible(name)}'", fix=fix, file=file)
    chosen = [(line, probe) for line, probe in found if probe.id in ids] if ids else found[:n]
    console = Console(highlight=False)
    for line, probe in chosen:
        console.print(Text(f"{visible(probe.id)}  (line {line})", style="bold"))
        console.print(_texts(probe))
    if not ids and n < len(found):
        click.echo(f"{len(found) - n} more: show them with -n {len(found)} or by --id.")


def _texts(probe: Probe) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=19, no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _parts_of(probe):
        table.add_row(Text(f"  {name}"), Text(visible(text)))
    table.add_row("", "")
    return table


def _parts_of(probe: Probe) -> Iterable[tuple[str, str]]:
    if isinstance(probe.prompt, str):
        yield "prompt", probe.prompt
    else:
        yield from ((message["role"], message["content"]) for message in probe.prompt)
    yield from probe.responses.items()


def visible(text: str) -> str:
    """The text with characters that act on a terminal or hide text written as escapes."""
    return "".join(c if _is_plain(c) else ascii(c)[1:-1] for c in text)


def _is_plain(character: str) -> bool:
    # The joiners belong to emoji and to several scripts; other format characters reorder or hide.
    joiners = "\u200c\u200d"
    return character in f"\n{joiners}" or unicodedata.category(character)[0] not in "C"
