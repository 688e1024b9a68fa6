"""A run in a trainer's checkpoint: what goes on elsewhere where the run's directory is lost.

Record, the phase's baseline and the greedy outputs that are scored, as one text, so that any
trainer can save it (JSON, a pickle-free `torch.load`). No prompts are in it.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcegauge.probes import ProbeSet
from forcegauge.record import RECORD_NAME, probes_by_phase, read_record

logger = logging.getLogger("forcegauge")

LARGEST = 16 << 20
"""Bytes of a record that still travels, about 800 probes."""
GREEDY_NAME = "greedy.jsonl"

State = dict[str, Any]


def pack(directory: Path, run: str, phase: str) -> State:
    """The state of a run; empty where it has no baseline yet, or a record that is too large."""
    record = (directory / RECORD_NAME).read_bytes()
    if len(record) > LARGEST:
        logger.warning("the record is too large to travel with checkpoints: keep %s", directory)
        return {}
    probes = probes_by_phase(read_record(directory)).get(phase)
    if not probes:
        return {}
    name = f"scores/{probes[0]['step']}.safetensors"
    files = {RECORD_NAME: record, name: (directory / name).read_bytes()}
    if greedy := first_outputs(directory):
        files[GREEDY_NAME] = json.dumps(greedy).encode()
    return {"run": run, "files": {name: _text(data) for name, data in files.items()}}


def unpack(state: Mapping[str, Any], directory: Path, run: str, texts: ProbeSet | None) -> None:
    """Lay a run's state into a directory that has no record yet; one that has goes first.

    ``texts`` are the probes whose prompts stand beside greedy outputs; None keeps both out.
    """
    if not state or (directory / RECORD_NAME).exists():
        return
    if state["run"] != run:
        logger.warning("the checkpoint is of run %s: %s has its own baseline", state["run"], run)
        return
    files = {name: _bytes(text) for name, text in state["files"].items()}
    (directory / "scores").mkdir(parents=True, exist_ok=True)
    record = files.pop(RECORD_NAME)
    greedy = files.pop(GREEDY_NAME, None)
    if greedy and texts:
        (directory / GREEDY_NAME).write_text(_with_prompts(greedy, texts), encoding="utf-8")
    for name, scores in files.items():
        (directory / "scores" / Path(name).name).write_bytes(scores)
    # last: a directory with a record is taken for whole
    (directory / RECORD_NAME).write_bytes(record)
    logger.info("the run's directory is new: it goes on from the trainer's checkpoint")


def _with_prompts(greedy: bytes, probe_set: ProbeSet) -> str:
    prompts = {probe.id: probe.as_json()["prompt"] for probe in probe_set.probes}
    rows = [{**row, "prompt": prompts.get(row["id"], "")} for row in json.loads(greedy)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def first_outputs(directory: Path) -> list[dict[str, Any]]:
    """The greedy outputs of the run's first baseline, which are scored ever after, without their
    prompts."""
    path = directory / GREEDY_NAME
    if not path.exists():
        return []
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    first = [row for row in rows if row["step"] == rows[0]["step"]]
    return [{key: value for key, value in row.items() if key != "prompt"} for row in first]


def _text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def _bytes(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
