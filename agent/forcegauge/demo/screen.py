"""What the demo shows: a line for every probe and a bar while it trains, a table at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forcegauge.compare import CALM
from forcegauge.demo.words import rows, sentences
from forcegauge.record import Line, read_record
from forcegauge.reporting.checkpoints import checkpoint_words
from forcegauge.reporting.story import Story
from forcegauge.watching.view import judgements

SHOWN = {
    "chosen": "chosen",
    "rejected": "rejected",
    "chosen_rephrase": "rephrase",
    "other_prompt": "other",
    "unseen_prompt": "unseen",
}
"""Response type -> heading of its column of log-probs."""

TITLE = "Nats per token; argmax: gain of the likeliest tokens in DPO"

STYLES = {"squeezing": "bold red", "diverging": "bold red", "collapsed": "bold red"}


def progress_bar(console: Console) -> Progress:
    """Phase, bar, step, loss, verdict and the time that the rest will take."""
    return Progress(
        TextColumn("{task.description:<4}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[verdict]}"),
        Remaining(),
        TextColumn("left"),
        console=console,
        # Some steps carry a probe: a short window would make the estimate jump.
        speed_estimate_period=120,
    )


class Watcher(TrainerCallback):
    """Shows one phase's progress on the bar, and each probe of the run's record once."""

    def __init__(self, progress: Progress, task: TaskID, phase: str, directory: Path) -> None:
        self._progress, self._task = progress, task
        self._phase, self._directory = phase, directory
        self._done = int(progress.tasks[0].completed)
        progress.update(task, description=phase.upper(), loss="-", verdict="taking the baseline")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show the baseline."""
        self._show_probe(0)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the loss."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None:
            self._progress.update(self._task, loss=f"{float(loss):.3f}")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show the step, and its probe when there was one."""
        self._progress.update(self._task, completed=self._done + state.global_step)
        self._show_probe(state.global_step)

    def _show_probe(self, step: int) -> None:
        probes = [line for line in read_record(self._directory) if line["kind"] == "probe"]
        own = [line for line in probes if line["phase"] == self._phase]
        if not own or own[-1]["step"] != own[0]["step"] + step:
            return
        last = own[-1]
        self._progress.update(self._task, verdict=last["verdict"])
        if last is probes[0]:
            self._progress.console.print(heading(), style="bold")
        self._progress.console.print(probe_line(last), style=STYLES.get(last["verdict"], ""))


def heading() -> str:
    """The heading over the lines of probes."""
    types = "".join(f"{name:>9}" for name in SHOWN.values())
    return f"{'phase':<6}{'step':>4}{types}{'squeeze':>9}  verdict"


def probe_line(probe: Line) -> str:
    """One probe: log-probs in nats per token, the squeeze index, the verdict."""
    scores, signals = probe["scores"], probe["signals"]
    levels = "".join(f"{scores[name]['logprob_mean']['mean']:>9.2f}" for name in SHOWN)
    squeeze = f"{signals['squeeze_nats']:>+9.2f}" if "squeeze_nats" in signals else f"{'':>9}"
    return f"{probe['phase']:<6}{probe['step']:>4}{levels}{squeeze}  {probe['verdict']}"


def show_summary(console: Console, story: Story) -> None:
    """The table in words, what each phase did, the verdict with its reason and advice, and the
    last healthy checkpoint."""
    console.print()
    console.print(_table(story))
    for sentence in sentences(story):
        console.print(f"\n{sentence}", highlight=False)
    if (line := story.verdict_line) is not None:
        calm = line["verdict"] in CALM
        console.print(_verdict(line, _latest_evidence(story) if calm else line["evidence"]))
        noticed = "" if calm else f"Noticed at step {line['step']}. "
        words = f"\n{noticed}{checkpoint_words(story)}"
        console.print(words, highlight=False, markup=False, soft_wrap=True)


def _latest_evidence(story: Story) -> str:
    """What a calm verdict stands on now: the recorded evidence is from where it began."""
    evidence: str = judgements(story.phases[-1].probes, story.runs[-1])[-1].evidence
    return evidence


def _verdict(line: Line, evidence: str) -> Text:
    verdict = line["verdict"]
    # Alarms begin with their name, which is the verdict's when one leads to it.
    rest = evidence.removeprefix(verdict) if evidence.startswith(verdict) else f". {evidence}"
    style = STYLES.get(verdict, "bold green")
    return Text.assemble("\nVerdict: ", (verdict, style), f"{rest} {line['advice']}")


def _table(story: Story) -> Table:
    table = Table(title=TITLE, box=None)
    table.add_column("answers")
    for name in ("before", "after\nSFT", "after\nDPO", "argmax"):
        table.add_column(name, justify="right")
    table.add_column("what happened")
    for row in rows(story):
        levels = (row.before, row.after_sft, row.after_dpo)
        shown = ["" if level is None else f"{level:.2f}" for level in levels]
        argmax = "" if row.argmax_change is None else f"{row.argmax_change:+.2f}"
        table.add_row(row.response_type, *shown, argmax, row.words)
    return table


class Notes(logging.Handler):
    """Puts the agent's warnings on the screen, without tracebacks."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        self._console.print(record.getMessage(), style="yellow", markup=False, highlight=False)
