"""`forcegauge monitor watch`: a training's checkpoints, scored as they come."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcegauge.errors import InputError
from forcegauge_monitor.commands.overview import opened
from forcegauge_monitor.commands.service import settings_of, settings_option

if TYPE_CHECKING:
    from forcegauge.agentless import Scored, Scoring

_OF_SCORING = ("folder", "probes", "run", "directory", "baseline", "device", "dtype")


@click.command()
@click.argument("folder", metavar="FOLDER")
@click.option("--probes", required=True, metavar="FILE", help="Probe file (JSONL).")
@click.option("--run", required=True, metavar="NAME", help="Name of the run.")
@click.option("--baseline", metavar="DIR|NAME", help="The model before training.")
@click.option("--directory", metavar="DIR", help="The record.  [default: FOLDER/forcegauge]")
@click.option("--phase", default="train", show_default=True, metavar="NAME", help="sft, dpo, ...")
@click.option("--loss", metavar="NAME", help="sft, dpo, ...: whether it pushes answers down.")
@click.option("--beta", type=click.FloatRange(min=0), help="The loss's beta.")
@click.option("--train", metavar="FILE", help="Training samples, for the monitor's snapshots.")
@click.option("--here", is_flag=True, help="Score in this process, until Ctrl-C.")
@click.option("--once", is_flag=True, help="Score what is there in this process, and end.")
@click.option("--seconds", type=click.FloatRange(min=1), default=30, show_default=True)
@click.option("--monitor", metavar="URL", help="With --here: the monitor to join.")
@click.option("--port", type=click.IntRange(0, 65535), help="With --here: of the metrics.")
@click.option("--bind", metavar="ADDRESS", help="With --here: of the metrics.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; the GPU where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
@click.option("--append-eos", is_flag=True, help="Score the end of each response too.")
@click.option("--no-texts", is_flag=True, help="Keep prompts and responses out of the record.")
@settings_option
def watch(file: str | None, here: bool, once: bool, seconds: float, **given: Any) -> None:
    """Score every new checkpoint-N in FOLDER, where the trainer has no agent in it.

    The monitor's workers do it (queue scores), or this process. Record, metrics, verdict and
    alarms are the agent's. Half-written checkpoints are left alone.
    """
    from forcegauge.agentless import follow, score_new
    from forcegauge.record import check_run_name

    check_run_name(given["run"])
    scoring = _scoring(given)
    if once:
        steps = score_new(scoring, _tell)
        click.echo(f"{scoring.record}: {len(steps)} new checkpoints scored.")
    elif here:
        follow(scoring, _stopped(), seconds=seconds, told=_tell)
    else:
        _leave_to_workers(file, scoring)


@click.command()
@click.argument("run", metavar="NAME")
@settings_option
def unwatch(run: str, file: str | None) -> None:
    """Watch the folder of the run NAME no more."""
    with opened(file) as store:
        if not store.unwatch(run):
            raise InputError(f"no folder is watched for '{run}'", field="NAME")
    click.echo(f"{run}: its folder is watched no more.")


def _scoring(given: dict[str, Any]) -> Scoring:
    from transformers.utils.logging import disable_progress_bar

    from forcegauge.agentless import Scoring

    # their bars would tear what is printed
    disable_progress_bar()
    settings = {k: v for k, v in given.items() if k not in _OF_SCORING and v is not None}
    settings["texts"] = not settings.pop("no_texts")
    return Scoring(**{name: given[name] for name in _OF_SCORING}, gauge=settings)


def _leave_to_workers(file: str | None, scoring: Scoring) -> None:
    from dataclasses import asdict

    from forcegauge_monitor.records import Watch, check_path

    settings = settings_of(file)
    given = asdict(scoring)
    folder, probes = (
        check_path(settings, str(Path(given.pop(name)).absolute()), name)
        for name in ("folder", "probes")
    )
    with opened(file) as store:
        store.watch(Watch(given.pop("run"), folder, probes, given))
    click.echo(f"{scoring.run}: the workers of the queue scores watch {folder} from now on.")


def _tell(found: Scored) -> None:
    click.echo(f"{found.path}: {found.judgement.verdict}. {found.judgement.evidence}")


def _stopped() -> threading.Event:
    """Set by Ctrl-C and by SIGTERM, so that a checkpoint at hand is scored to its end."""
    event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: event.set())
    return event
