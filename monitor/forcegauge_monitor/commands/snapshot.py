"""`forcegauge monitor snapshot`: one checkpoint, taken here or by the monitor's workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcegauge.errors import InputError

if TYPE_CHECKING:
    from forcegauge_monitor.entk.pieces import Piece
    from forcegauge_monitor.job import Job
    from forcegauge_monitor.results import Metrics

WORDS = {
    "reference": "the reference's log-probs",
    "policy": "the model's log-probs",
    "direction": "directions of the response types",
    "coverage": "check against autograd",
    "attribution": "who pushes what",
    "tokens": "the strongest pushers' tokens",
    "gaussian": "kernel norms",
    "fisher": "kernel norms, Fisher-weighted",
    "after": "measured changes",
    "before": "predicted changes",
}


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Full model or adapter.")
@click.option("--probes", metavar="FILE", help="Probe file (JSONL).")
@click.option("--train", metavar="FILE", help="Training samples, as TRL takes them.")
@click.option("--loss", metavar="NAME", help="sft, dpo, ipo, ...  [default: sft]")
@click.option("--beta", type=click.FloatRange(min=0), help="The loss's beta.  [default: 0.1]")
@click.option("--reference", metavar="DIR|NAME", help="Reference model of the loss.")
@click.option("--previous", metavar="DIR", help="An earlier snapshot, or an earlier checkpoint.")
@click.option("-o", "--output", metavar="SNAPSHOT/", help="Where the snapshot goes.")
@click.option("--server", metavar="URL", help="Have a monitor's workers do it; wants --run.")
@click.option("--run", metavar="NAME", help="The run that it is of, known to that monitor.")
@click.option("--step", type=click.IntRange(min=0), help="Of the checkpoint, where no name tells.")
@click.option("--plan", "only_plan", is_flag=True, help="Print memory and cost, and do nothing.")
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--kernel-probes", type=click.IntRange(min=0), default=8, show_default=True)
@click.option("--tokens", is_flag=True, help="Take the strongest pushers apart into tokens.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; the GPU where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Keep a prompt's end.")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Keep a response's start.")
def snapshot(server: str | None, run: str | None, step: int | None, **given: Any) -> None:
    """Tell of one checkpoint which training samples push which response types.

    Also how similar the model thinks responses are (the kernel), and, with --previous, whether the
    kernel is stable and one-step predictions hold. A call that was stopped goes on where it was.

    With --server and --run the workers of a monitor do it; what is not given is as the run told.
    """
    if server is None:
        _here(**given)
        return
    from forcegauge_monitor.commands.remote import ask

    if run is None:
        raise InputError("--server needs the run's name", fix="Give it with --run")
    names = ("checkpoint", "probes", "train", "loss", "beta")
    asked = {name: given[name] for name in names if given[name] is not None}
    for line in ask(server, run, asked | ({} if step is None else {"step": step})):
        click.echo(line)


def _here(output: str | None, only_plan: bool, memory: float | None, **given: Any) -> None:
    from forcegauge_monitor.job import Job, Settings

    for name, value in {
        "-o": output,
        "--probes": given["probes"],
        "--train": given["train"],
    }.items():
        if value is None:
            raise InputError(f"{name} is needed", fix="Give it, or ask a monitor with --server")
    limit = None if memory is None else int(memory * 2**30)
    given["loss"] = given["loss"] or "sft"
    job = Job(Settings(**given, memory=limit), Path(str(output)))
    if job.finished():
        click.echo(f"{output}: this snapshot is finished already.")
        return
    for line in described(job):
        click.echo(line, err=not only_plan)
    if not only_plan:
        _take(job)


def _take(job: Job) -> None:
    from forcegauge_monitor.page import write_page
    from forcegauge_monitor.snapshot import take

    with _progress(job) as progress:
        metrics = take(job, progress)
    page = write_page(job.folder)
    for line in told(metrics):
        click.echo(line)
    click.echo(f"{page}: the snapshot as a page, beside {job.folder / 'metrics.json'}.")


def described(job: Job) -> list[str]:
    """The plan in words: what is asked, memory, disk, work and time."""
    from forcegauge_monitor.entk.plan import free_memory, machine_flops

    plan, work = job.plan, job.asked
    free = job.settings.memory or free_memory(job.device)
    seconds = plan.flops / machine_flops(job.device)
    cut = [f"{len(plan.groups)} groups of response types"] if len(plan.groups) > 1 else []
    cut += [f"{len(plan.blocks)} blocks of parameters"] if len(plan.blocks) > 1 else []
    apart = f", in {' and '.join(cut)}" if cut else ""
    return [
        f"Asked: {len(work.probes)} response types with {sum(work.probes.values())} responses, "
        f"{len(job.samples.pairs)} training samples ({work.samples} sequences), loss "
        f"{job.loss.name}, kernel of {work.kernel_probes} probes.",
        f"Memory: {_gib(plan.peak_bytes)} at the peak, of {_gib(free)} that are free; directions "
        f"as {plan.storage}{apart}.",
        f"Disk while working: {_gib(plan.disk_bytes)} in {job.folder}.",
        f"Work: {plan.forwards:,.0f} forward passes of {work.tokens:.0f} tokens "
        f"({plan.flops:.1e} floating-point operations), about {_duration(seconds)} here.",
    ]


def told(metrics: Metrics) -> list[str]:
    """The snapshot in a few lines."""
    pushes = {name: row["sample"] for name, row in metrics["attribution_nats"].items()}
    strongest = sorted(pushes.items(), key=lambda item: -abs(item[1]))[:3]
    raised = ", ".join(f"{name} {value:+.3g}" for name, value in strongest)
    lines = [f"Training on a sample moves most, in nats per unit of learning rate: {raised}."]
    if "entk_alignment_ratio" in metrics:
        lines.append(f"Kernel aligned with the first: {metrics['entk_alignment_ratio']:.3f}.")
    if "prediction" in metrics:
        found = metrics["prediction"]
        lines.append(
            f"Predicted against measured changes: R² {found['r2']:.3f}, slope {found['slope']:.2f}."
        )
    if metrics["left_out"]["names"]:
        lines.append(f"Left out: {metrics['left_out']['ratio']:.1%} of the trained parameters.")
    lines.append(
        f"Peak memory {_gib(metrics['peak_memory_bytes'])} ({_gib(metrics['plan']['peak_bytes'])} "
        f"planned), {_duration(metrics['seconds'])}."
    )
    return lines


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[Piece, float], None]]:
    """A bar over forward passes with the time left; pieces that were there count as done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    every = [piece for stage in job.stages() for piece in stage]
    left = {piece.name for stage in job.missing() for piece in stage}
    there = sum((piece.cost for piece in every if piece.name not in left), 0.0)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(piece.cost for piece in every))
        done: dict[str, float] = {}

        def progress(piece: Piece, forwards: float) -> None:
            done[piece.name] = forwards
            label = WORDS.get(piece.kind, piece.kind)
            bar.update(task, description=label, completed=there + sum(done.values()))

        yield progress
