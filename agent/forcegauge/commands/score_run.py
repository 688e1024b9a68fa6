"""`forcegauge score --run-dir`: a folder of checkpoints becomes the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcegauge.errors import InputError

if TYPE_CHECKING:
    from forcegauge.agentless import Scored

OF_RUNS = ("run", "baseline", "phase", "loss", "beta")
"""Options that only a record has a place for."""


def score_run(
    models: Sequence[str], probes: Sequence[str], directory: str, settings: Mapping[str, Any]
) -> None:
    """Score the new checkpoints of one folder into the record in this directory.

    Raises `InputError` for more than one folder or probe file, and for bad settings.
    """
    for name, given in (("--model", models), ("--probes", probes)):
        if len(given) > 1:
            raise InputError("a record is of one", field=name, fix="Name one, or leave --run-dir")
    if not Path(models[0]).is_dir():
        raise InputError("no such folder of checkpoints", file=models[0], fix="Check the path")
    from transformers.utils.logging import disable_progress_bar

    from forcegauge.agentless import Scoring, score_new
    from forcegauge.record import check_run_name

    check_run_name(settings["run"] or "run")
    # their bars would tear what is printed
    disable_progress_bar()
    known = {name: value for name, value in settings.items() if value is not None}
    scoring = Scoring(
        folder=models[0],
        probes=probes[0],
        run=known.pop("run", "run"),
        directory=directory,
        baseline=known.pop("baseline", None),
        device=known.pop("device", None),
        dtype=known.pop("dtype"),
        gauge=known,
    )
    steps = score_new(scoring, _tell)
    click.echo(f"{directory}: {len(steps)} new checkpoints scored.")


def _tell(found: Scored) -> None:
    click.echo(f"{found.path}: {found.judgement.verdict}. {found.judgement.evidence}")
