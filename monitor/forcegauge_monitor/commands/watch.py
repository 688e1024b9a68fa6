"""`forcegauge monitor watch`: a training's checkpoints, scored as they come."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from forcegauge_monitor.agentless import Scored


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
@click.option("--monitor", metavar="URL", help="The monitor to join.  [FORCEGAUGE_MONITOR]")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the metrics.  [default: 9790]")
@click.option("--bind", metavar="ADDRESS", help="Of the metrics.  [default: loopback]")
@click.option("--seconds", type=click.FloatRange(min=1), default=30, show_default=True)
@click.option("--once", is_flag=True, help="Score what is there, and end.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; the GPU where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
@click.option("--append-eos", is_flag=True, help="Score the end of each response too.")
@click.option("--no-texts", is_flag=True, help="Keep prompts and responses out of the record.")
def watch(seconds: float, once: bool, **given: Any) -> None:
    """Score every new checkpoint-N in FOLDER, where the trainer has no agent in it.

    Record, metrics, verdict and alarms are the agent's. Half-written checkpoints are left alone.
    A call that was stopped goes on where it was.
    """
    from transformers.utils.logging import disable_progress_bar

    from forcegauge_monitor.agentless import Scoring, follow, score_new

    disable_progress_bar()
    mine = ("folder", "probes", "run", "directory", "baseline", "device", "dtype")
    settings = {k: v for k, v in given.items() if k not in (*mine, "no_texts") and v is not None}
    settings["texts"] = not given["no_texts"]
    scoring = Scoring(**{name: given[name] for name in mine}, gauge=settings)
    if once:
        steps = score_new(scoring, _tell)
        click.echo(f"{scoring.record}: {len(steps)} new checkpoints scored.")
    else:
        follow(scoring, _stopped(), seconds=seconds, told=_tell)


def _tell(found: Scored) -> None:
    click.echo(f"{found.path}: {found.judgement.verdict}. {found.judgement.evidence}")


def _stopped() -> threading.Event:
    """Set by Ctrl-C and by SIGTERM, so that a checkpoint at hand is scored to its end."""
    event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: event.set())
    return event
