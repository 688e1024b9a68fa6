"""The demo's run: a real model, a short SFT, then off-policy DPO, watched by the agent."""

from __future__ import annotations

import logging
import os
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from forcegauge.demo.model import HUB_NAME, demo_model
from forcegauge.demo.screen import Notes, Watcher, progress_bar, show_summary
from forcegauge.demo.trainers import Recipe, demo_probes, dpo_trainer, sft_trainer
from forcegauge.errors import InputError
from forcegauge.exporter import Endpoint
from forcegauge.integrations.transformers import ForceGaugeCallback
from forcegauge.record import RECORD_NAME, open_record, read_record
from forcegauge.report import write_report
from forcegauge.reporting.story import tell

PROBES_A_PHASE = 5
"""Evenly spaced ones, after the dense early ones that every phase begins with."""

PHASES = {"sft": sft_trainer, "dpo": dpo_trainer}


def run_demo(recipe: Recipe, directory: Path, endpoint: Endpoint, console: Console) -> None:
    """Train, watch, and tell at the end what happened; the record lies in ``directory``.

    Ctrl-C ends the record, tells what there is, and goes on as `KeyboardInterrupt`.
    """
    quiet(console)
    console.print(f"Metrics are served at http://{endpoint.bind}:{endpoint.port}/metrics")
    console.print(f"The run is recorded in {directory}")
    try:
        _train(recipe, directory, endpoint.port, console)
    except KeyboardInterrupt:
        _end_by_signal(directory, run_name(recipe))
        _tell(directory, console, "Stopped. ")
        raise
    _tell(directory, console)
    if not recipe.healthy:
        console.print("What stays healthy with the same DPO: forcegauge demo --healthy")


def new_directory(parent: Path, run: str) -> Path:
    """Make the first of PARENT/RUN-1, PARENT/RUN-2, ... that is not there yet."""
    for number in count(1):
        directory = parent / f"{run}-{number}"
        if not directory.exists():
            return empty_directory(directory)
    raise AssertionError


def empty_directory(directory: Path) -> Path:
    """Make a directory; raises `InputError` when it holds something or cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        used = any(directory.iterdir())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be written to ({reason})", file=directory, field="-o") from None
    if used:
        fix = "Name a new directory, or leave out -o"
        raise InputError("is not empty, and no run is overwritten", fix=fix, file=directory)
    return directory


def quiet(console: Console) -> None:
    """Leave the screen to the demo: other libraries' bars, logs and warnings are switched off."""
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    agent = logging.getLogger("forcegauge")
    agent.addHandler(Notes(console))
    agent.propagate = False


def run_name(recipe: Recipe) -> str:
    """The run's name, as its metrics have it."""
    return "demo-healthy" if recipe.healthy else "demo"


def _train(recipe: Recipe, directory: Path, port: int, console: Console) -> None:
    with console.status("Loading the model (the first time it is fetched or converted)"):
        path = demo_model()
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path)
    probes = demo_probes(recipe)
    console.print(f"{recipe.pairs} preference pairs, {len(probes)} probes, {HUB_NAME}\n")
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(recipe.steps.values()), loss="-", verdict="")
        for phase, make in PHASES.items():
            trainer = make(recipe, model, tokenizer, directory)
            gauge = ForceGaugeCallback(
                probes=probes,
                run=run_name(recipe),
                directory=directory,
                every=recipe.steps[phase] // PROBES_A_PHASE,
                budget=None,
                port=port,
            )
            trainer.add_callback(gauge)
            trainer.add_callback(Watcher(progress, task, phase, directory))
            _run(trainer, gauge)


def _run(trainer: Any, gauge: ForceGaugeCallback) -> None:
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train()
    except KeyboardInterrupt:
        if gauge.gauge is not None:
            gauge.gauge.close("signal")
        raise


def _end_by_signal(directory: Path, run: str) -> None:
    """Between two phases no gauge is open that would write the end."""
    lines = read_record(directory) if (directory / RECORD_NAME).exists() else []
    if lines and lines[-1].get("reason") != "signal":
        record = open_record(directory, run)
        place = {"phase": lines[-1]["phase"], "step": lines[-1]["step"]}
        record.append("end", {"reason": "signal"}, **place)
        record.close()


def _tell(directory: Path, console: Console, first: str = "") -> None:
    if not (directory / RECORD_NAME).exists():
        console.print(f"{first}Nothing was recorded yet.")
        return
    story = tell(read_record(directory))
    show_summary(console, story)
    console.print(f"\n{first}The record is {directory / RECORD_NAME}")
    console.print(f"Open the report: {write_report(directory).resolve().as_uri()}", soft_wrap=True)
