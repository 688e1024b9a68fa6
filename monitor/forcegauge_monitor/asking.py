"""What a snapshot is asked for: by somebody, or by a checkpoint that a run announces."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable

from forcegauge.errors import InputError
from forcegauge_monitor.bodies import SnapshotBody
from forcegauge_monitor.records import Event, Run, Snapshot, check_path
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store

logger = logging.getLogger(__name__)


def snapshot_of(settings: Settings, run: Run, body: SnapshotBody) -> Snapshot:
    """The snapshot that is asked for; what the body leaves out is as the run told it.

    Raises `InputError` for a path that is not allowed, and for what nobody told.
    """
    # not the agent's checkpoint_step: its module brings torch into a process that needs none
    number = body.checkpoint.rstrip("/").rpartition("/checkpoint-")[2]
    if body.step is None and not number.isdecimal():
        fix = "Tell it, or name a folder checkpoint-N"
        raise InputError("the checkpoint's name tells no step", field="step", fix=fix)
    told = {"probes": body.probes or run.probes, "train": body.train or run.train}
    return Snapshot(
        id=secrets.token_hex(8),
        run=run.run,
        checkpoint=check_path(settings, body.checkpoint, "checkpoint"),
        step=int(number) if body.step is None else body.step,
        probes=_path(settings, told["probes"], "probes"),
        train=_path(settings, told["train"], "train"),
        loss=body.loss or run.loss or "sft",
        beta=run.beta if body.beta is None else body.beta,
        probe_hash=run.probe_hash if told["probes"] == run.probes else "",
        queue=body.queue or settings.queue,
    )


def _path(settings: Settings, value: str | None, name: str) -> str:
    if not value:
        fix = "Tell it with the request or the run"
        raise InputError("is needed and nobody told it", field=name, fix=fix)
    return check_path(settings, value, name)


def ask(store: Store, submit: Callable[[Snapshot], None], snapshot: Snapshot) -> Snapshot:
    """Queue a snapshot and hand it to the workers; or the one that answers the same already."""
    found = store.ask(snapshot)
    if found.id == snapshot.id:
        submit(found)
    return found


def ask_for_checkpoints(
    settings: Settings,
    store: Store,
    submit: Callable[[Snapshot], None],
    run: Run,
    events: Iterable[Event],
) -> None:
    """Ask for a snapshot of the announced checkpoints that are `snapshot_every` steps apart."""
    saved = [each for each in events if each.kind == "checkpoint" and each.path]
    if not (saved and settings.snapshot_every):
        return
    last = max((each.step for each in store.snapshots(run.run)), default=None)
    for event in sorted(saved, key=lambda each: each.step):
        if last is not None and event.step < last + settings.snapshot_every:
            continue
        try:
            body = SnapshotBody(checkpoint=event.path, step=event.step)
            ask(store, submit, snapshot_of(settings, run, body))
        except InputError as error:
            logger.warning("%s: no snapshot of step %d: %s", run.run, event.step, error)
        else:
            last = event.step
