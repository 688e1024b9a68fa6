"""A worker scores a watched folder: what the agent would tell the monitor is told by the worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from forcegauge.agentless import Scored, Scoring, score_new
from forcegauge.errors import InputError
from forcegauge.textfiles import first_line
from forcegauge_monitor.asking import ask_for_checkpoints
from forcegauge_monitor.records import Event, Run, Snapshot, Watch, check_path
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store

logger = logging.getLogger(__name__)

Submit = Callable[[Snapshot], None]


def score(
    settings: Settings, store: Store, submit: Submit, watch: Watch, said: set[str] | None = None
) -> None:
    """Score what is new and whole in a folder; what cannot be scored is tried again the next time,
    as where another process writes the same record. It is logged unless it is in ``said``.

    Nothing is read or written outside the storage and the allowed roots.
    """
    said = set[str]() if said is None else said
    scoring = Scoring(folder=watch.folder, probes=watch.probes, run=watch.run, **watch.settings)
    try:
        for name in ("folder", "probes", "record"):
            check_path(settings, str(getattr(scoring, name)), name)
        score_new(
            scoring,
            lambda found: _tell(settings, store, submit, scoring, found),
            check=lambda path: check_path(settings, path, "checkpoint"),
            said=said,
        )
    except InputError as error:
        text = f"{watch.run}: {first_line(error)}"
        if text not in said:
            said.add(text)
            logger.warning(text)


def _tell(
    settings: Settings, store: Store, submit: Submit, scoring: Scoring, found: Scored
) -> None:
    run, told, now = _run(scoring, found), found.judgement, time.time()
    store.register(run)
    saved = Event(f"saved-{found.step}", "checkpoint", found.step, now, path=str(found.path))
    alarms = [
        Event(f"{each.name}-{found.step}", "alarm", found.step, now, "on" if each.on else "off")
        for each in told.changed
    ]
    ask_for_checkpoints(settings, store, submit, run, [saved])
    beat = {"step": found.step, "verdict": told.verdict}
    beat |= {"since_step": told.since_step, "evidence": told.evidence}
    store.heartbeat(run.run, run.record_id, beat, [saved, *alarms])
    store.scored(run.run, found.samples)


def _run(scoring: Scoring, found: Scored) -> Run:
    gauge = scoring.gauge
    return Run(
        scoring.run,
        found.record_id,
        model=scoring.baseline or "",
        loss=gauge.get("loss"),
        beta=gauge.get("beta"),
        probes=scoring.probes,
        train=gauge.get("train"),
    )
