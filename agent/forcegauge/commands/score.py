"""`forcegauge score`: a probe set scored with one or more checkpoints."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcegauge.commands.score_run import OF_RUNS, score_run
from forcegauge.errors import InputError
from forcegauge.probes import ProbeSet
from forcegauge.textfiles import read_lines, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forcegauge.scorer import Scorer
    from forcegauge.scores import Scores

_STATISTICS = (
    "logprob_sum",
    "logprob_mean",
    "argmax_logprob_sum",
    "argmax_mass",
    "entropy",
    "collision",
    "residual_norm",
    "energy",
)


@dataclass(frozen=True)
class Settings:
    """What every model of one call is scored with; ``max_memory`` in bytes."""

    device: str | None
    dtype: str
    max_prompt_tokens: int | None
    max_response_tokens: int | None
    append_eos: bool
    max_memory: int | None


def _bytes(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    from forcegauge.budget import parse_bytes

    return parse_bytes(text)


@click.command()
@click.option("--model", "models", multiple=True, required=True, metavar="DIR|NAME")
@click.option("--probes", multiple=True, required=True, metavar="FILE", help="Probe file (JSONL).")
@click.option("-o", "--output", metavar="OUT.jsonl", help="Where scores go, a line per response.")
@click.option("--run-dir", metavar="DIR", help="Where they go as a run's record, in place of -o.")
@click.option("--run", metavar="NAME", help="With --run-dir: name of the run.")
@click.option("--baseline", metavar="DIR|NAME", help="With --run-dir: the model before training.")
@click.option("--phase", metavar="NAME", help="With --run-dir: sft, dpo, ...")
@click.option("--loss", metavar="NAME", help="With --run-dir: whether it pushes answers down.")
@click.option("--beta", type=click.FloatRange(min=0), help="With --run-dir: the loss's beta.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; the GPU where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
@click.option("--append-eos", is_flag=True, help="Score the end of each response too.")
@click.option(
    "--max-memory", metavar="SIZE", callback=_bytes, help="Above the weights, such as 2GiB."
)
def score(
    models: tuple[str, ...],
    probes: tuple[str, ...],
    output: str | None,
    run_dir: str | None,
    **settings: Any,
) -> None:
    """Score one or more probe sets with one or more checkpoints.

    A folder that holds checkpoint-N folders stands for all of them in order. Models that OUT holds
    already are skipped, so that a run is followed by calling this again. Each model is loaded
    once, whatever the number of probe files; their ids must differ.

    With --run-dir the new checkpoints of one folder become the record that an agent in the trainer
    would have written, with verdicts and alarms, for report, watch and compare. Without --baseline
    an adapter's base model or the first checkpoint is what changes are counted from.
    """
    if run_dir is not None and output is None:
        score_run(models, probes, run_dir, settings)
        return
    of_runs = [name for name in OF_RUNS if settings.pop(name) is not None]
    if output is None or run_dir is not None or of_runs:
        raise InputError("scores go to a file or to a record", fix=_EITHER, field="-o")
    sets = load_sets(probes)
    lines, there = read_scored(output, sets)
    from transformers.utils.logging import disable_progress_bar

    from forcegauge.loading import checkpoints, pick_device

    # Their bars would tear the one below.
    disable_progress_bar()
    names = list(dict.fromkeys(name for given in models for name in checkpoints(given)))
    todo = [name for name in names if name not in there]
    pick_device(settings["device"])
    encoded = Encoded(sets, Settings(**settings))
    with _progress(len(todo)) as (start, advance):
        for name in todo:
            start(name)
            for scores in score_model(name, encoded, start, advance):
                lines.extend(json.dumps(row) for row in rows(name, scores))
            write_whole(output, "".join(f"{line}\n" for line in lines))
    skipped = f", {len(names) - len(todo)} were there already" if len(todo) < len(names) else ""
    count = sum(len(each) for each in sets)
    click.echo(f"{output}: {len(todo)} models scored on {count} probes{skipped}.")


_EITHER = f"Give -o, or --run-dir with which --{', --'.join(OF_RUNS)} go"


def load_sets(paths: Sequence[str]) -> list[ProbeSet]:
    """The probe sets of these files; raises `InputError` for an id that two of them hold."""
    found, owners = [], dict[str, str]()
    for path in paths:
        probe_set = ProbeSet.load(path)
        for probe in probe_set.probes:
            if probe.id in owners:
                raise InputError(
                    f"'{probe.id}' is also in {owners[probe.id]}",
                    fix="Give each probe an id of its own, for a line of scores names no file",
                    file=path,
                    field="id",
                )
        owners |= dict.fromkeys((probe.id for probe in probe_set.probes), path)
        found.append(probe_set)
    return found


@dataclass
class Encoded:
    """Probe sets, encoded once for each tokenizer that a call meets."""

    sets: Sequence[ProbeSet]
    settings: Settings
    _by_tokenizer: dict[str, list[Scorer]] = field(default_factory=dict)
    _by_model: dict[tuple[str, str], list[Scorer]] = field(default_factory=dict)

    def scorers(self, name: str) -> tuple[str, list[Scorer]]:
        """A scorer of each probe set with the tokenizer of that name, and what tells that one
        from others."""
        from forcegauge.loading import load_tokenizer

        tokenizer = load_tokenizer(name)
        key = _fingerprint(name, tokenizer)
        if key not in self._by_tokenizer:
            self._by_tokenizer[key] = [self._scorer(each, tokenizer) for each in self.sets]
        return key, self._by_tokenizer[key]

    def for_model(self, tokenizer: str, model: PreTrainedModel) -> list[Scorer]:
        """The scorers of a tokenizer for this model. Models that differ in weights only share
        them, so that the way to score them is chosen once."""
        key, scorers = (tokenizer, _architecture(model)), self._by_tokenizer[tokenizer]
        return self._by_model.setdefault(key, [copy.copy(scorer) for scorer in scorers])

    def _scorer(self, probe_set: ProbeSet, tokenizer: Any) -> Scorer:
        from forcegauge.scorer import Scorer

        return Scorer(
            probe_set,
            tokenizer,
            max_prompt_tokens=self.settings.max_prompt_tokens,
            max_response_tokens=self.settings.max_response_tokens,
            append_eos=self.settings.append_eos,
            max_memory=self.settings.max_memory,
        )


def _fingerprint(name: str, tokenizer: Any) -> str:
    """The same for tokenizers that encode every probe alike; one written in Python is its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = name if backend is None else backend.to_str()
    special = tokenizer.bos_token_id, tokenizer.eos_token_id
    return repr((rules, special, getattr(tokenizer, "chat_template", None)))


def _architecture(model: PreTrainedModel) -> str:
    settings = model.config.to_dict().items()
    return repr(sorted((name, repr(value)) for name, value in settings if name[0] != "_"))


def score_model(
    name: str,
    encoded: Encoded,
    start: Callable[[str, int], None],
    advance: Callable[[int], None],
) -> Iterator[Scores]:
    """Load one model with its tokenizer and score every probe set with it."""
    from forcegauge.loading import check_causal, load_model, pick_device

    check_causal(name)
    (tokenizer, scorers), settings = encoded.scorers(name), encoded.settings
    model = load_model(name, dtype=settings.dtype, device=pick_device(settings.device))
    start(name, sum(scorer.tokens for scorer in scorers))
    for scorer in encoded.for_model(tokenizer, model):
        yield scorer.score(model, advance=advance)


def rows(model: str, scores: Scores) -> Iterator[dict[str, Any]]:
    """One object per response; a value that is not finite is null, for JSON has no other."""
    from forcegauge.loading import checkpoint_step

    step = checkpoint_step(model)
    for index, probe in enumerate(scores.ids):
        for place, response_type in enumerate(scores.types):
            tokens = scores.values["tokens"][index, place]
            if math.isnan(tokens):
                continue
            row: dict[str, Any] = {"model": model, "id": probe, "response_type": response_type}
            row |= {"step": step} if step is not None else {}
            values = {name: float(scores.values[name][index, place]) for name in _STATISTICS}
            finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
            yield row | {"tokens": int(tokens)} | finite


def read_scored(path: str, sets: Sequence[ProbeSet]) -> tuple[list[str], set[str]]:
    """Lines that the output file holds already, and the models they are of; raises `InputError`
    for a file that cannot be written or that holds something else."""
    _check_writable(Path(path))
    lines = [line.rstrip("\n") for _, line in read_lines(path)] if Path(path).exists() else []
    found: dict[str, set[tuple[str, str]]] = {}
    for number, line in enumerate(lines, start=1):
        row = _scored_row(line, path, number)
        found.setdefault(row["model"], set()).add((row["id"], row["response_type"]))
    probes = [probe for each in sets for probe in each.probes]
    asked = {(probe.id, name) for probe in probes for name in probe.responses}
    if any(scored != asked for scored in found.values()):
        raise InputError(
            "holds scores of other probes", fix="Write to another file", file=path, field="-o"
        )
    return lines, set(found)


def _scored_row(line: str, path: str, number: int) -> Mapping[str, str]:
    try:
        row = json.loads(line)
        return {name: str(row[name]) for name in ("model", "id", "response_type")}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "is no line of scores", fix="Write to another file", file=path, line=number
        ) from None


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise InputError("is a folder, not a file", fix="Name a file in it", file=path, field="-o")
    if not folder.is_dir():
        fix = f"Make {folder} first"
        raise InputError("its folder does not exist", fix=fix, file=path, field="-o")
    if not os.access(folder, os.W_OK):
        raise InputError("its folder cannot be written to", file=path, field="-o")


@contextmanager
def _progress(models: int) -> Iterator[tuple[Callable[..., None], Callable[[int], None]]]:
    """A bar over the tokens of the model at hand, with the time left for all; gives two functions:
    one names a model (and its tokens once they are known), one counts tokens that are done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        done = -1

        def start(name: str, tokens: int | None = None) -> None:
            nonlocal done
            done += tokens is None
            label = f"{Path(name).name} ({done + 1}/{models})"
            total = None if tokens is None else models * tokens
            completed = None if tokens is None else done * tokens
            progress.update(task, description=label, total=total, completed=completed)

        yield start, lambda tokens: progress.advance(task, tokens)
