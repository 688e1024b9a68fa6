"""kill -9 at random moments while snapshots are made: `make chaos`.

After the last kill a round may take as long as it takes, but it may not stand still: within
`STALL_SECONDS` some snapshot has to begin or to end. A round that has a fault keeps its folder,
with a log for each process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import torch
from safetensors.torch import load_file

from forcegauge.probes import Probe, ProbeSet
from forcegauge_monitor.job import Job
from forcegauge_monitor.job import Settings as Asked
from forcegauge_monitor.snapshot import take
from tests import tiny
from tests.monitor.fleet import PASSWORD, Fleet, fleet

OF_THE_MACHINE = ("seconds", "peak_memory_bytes", "identity")
FAST: dict[str, Any] = {"lease_seconds": 3.0, "visibility_seconds": 5, "kernel_probes": 0}
"""Minutes in production: long enough for a model to load, and short enough for a test here."""


STALL_SECONDS = 120.0
"""What may come together on a busy machine: half a minute for a worker to start twice, as much
until it finds a Redis that has come back, and the pauses of four tries."""


@dataclass
class Round:
    """What one round came to."""

    seed: int
    seconds: float = 0.0
    killed: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    faults: list[str] = field(default_factory=list)


def make_inputs(folder: Path, *, layers: int = 1, pairs: int = 4) -> dict[str, str]:
    """A tiny checkpoint, two probes of three types and some pairs."""
    folder.mkdir(parents=True)
    net = tiny.llama(layers=layers)
    net.save_pretrained(folder / "checkpoint-2")
    tiny.tokenizer().save_pretrained(folder / "checkpoint-2")
    types = ("chosen", "rejected", "unrelated")
    probes = [
        Probe(each.id, each.prompt, {name: each.responses[name] for name in types})
        for each in tiny.probe_set(2).probes
    ]
    ProbeSet(tuple(probes)).save(folder / "probes.jsonl")
    rows = [
        {"prompt": f"what of {word}?", "chosen": word, "rejected": f"{word} no"}
        for word in itertools.islice(itertools.cycle(tiny.WORDS), pairs)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"checkpoint": "checkpoint-2", "probes": "probes.jsonl", "train": "train.jsonl"}
    return {name: str(folder / file) for name, file in names.items()}


def undisturbed(inputs: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The same snapshot, taken in this process without a monitor."""
    # as the workers: the last bits of a sum depend on how many threads share it
    torch.set_num_threads(1)
    told: dict[str, Any] = dict(inputs)
    return dict(take(Job(Asked(**told, loss="dpo", kernel_probes=0), folder)))


def one_round(
    folder: Path,
    inputs: Mapping[str, str],
    expected: Path,
    seed: int,
    *,
    snapshots: int = 20,
    kills: int = 8,
) -> Round:
    """Ask for snapshots while processes are killed, and look at what came of it."""
    found, began = Round(seed), time.monotonic()
    draw = random.Random(seed)
    root = str(Path(inputs["probes"]).parent)
    with fleet(folder, roots=root, **FAST) as one:
        killer = threading.Thread(target=_kill, args=(one, draw, found, kills))
        killer.start()
        asked = {f"run-{number}": ask(one, f"run-{number}", inputs) for number in range(snapshots)}
        killer.join()
        one.revive()
        settled = _settled(one, asked, found)
        found.seconds = time.monotonic() - began
        if settled:
            _judge(one, asked, expected, found)
    return found


def _kill(one: Fleet, draw: random.Random, found: Round, kills: int) -> None:
    for _ in range(kills):
        time.sleep(draw.uniform(0.2, 3.0))
        name = draw.choice(["redis", "api", "worker-1", "beat", "worker-1", "redis"])
        one.kill(name)
        found.killed[name] = found.killed.get(name, 0) + 1
        time.sleep(draw.uniform(0.0, 1.5))
        one.revive()


def ask(one: Fleet, run: str, inputs: Mapping[str, str]) -> str:
    """Register a run and ask for its snapshot, as often as it takes; the snapshot's id."""
    facts = {"probes": inputs["probes"], "train": inputs["train"], "loss": "dpo"}
    one.insist("POST", "/runs", {"run": run, "record_id": run, "model": "tiny", **facts})
    body = {"checkpoint": inputs["checkpoint"], "step": 2}
    return str(one.insist("POST", f"/runs/{run}/snapshots", body)["id"])


def _settled(one: Fleet, asked: dict[str, str], found: Round) -> bool:
    """Wait until all are over; false, and a fault, when nothing changes for `STALL_SECONDS`."""
    before, since = one.states(asked), time.monotonic()
    while time.monotonic() < since + STALL_SECONDS:
        # as whatever supervises them in production
        for name in one.family.tend():
            found.killed[f"{name}, by itself"] = found.killed.get(f"{name}, by itself", 0) + 1
        states = one.states(asked)
        if states and not {"queued", "running"} & set(states.values()):
            return True
        if states != before:
            before, since = states, time.monotonic()
        time.sleep(0.1)
    found.faults.append(f"stood still for {STALL_SECONDS:.0f} s: {before}")
    return False


def _judge(one: Fleet, asked: dict[str, str], expected: Path, found: Round) -> None:
    counts = one.store.overview().counts
    for run, key in asked.items():
        each = one.store.snapshot(run, key)
        assert each is not None
        found.states[each.state] = found.states.get(each.state, 0) + 1
        found.attempts += each.attempts
        if each.state == "failed" and not each.reason:
            found.faults.append(f"{run} failed without a reason")
        elif each.state not in ("done", "failed"):
            found.faults.append(f"{run} is {each.state}")
        elif each.state == "done":
            found.faults += differences(Path(each.path), expected, each.metrics, run)
        if sum(number for (name, _), number in counts.items() if name == run) != 1:
            found.faults.append(f"{run} ended more than once: {counts}")
        if (Path(one.settings.storage) / run / key / "work").exists():
            found.faults.append(f"{run} left its work behind")
    found.faults += _left_behind(one)


def differences(folder: Path, expected: Path, metrics: Mapping[str, Any], run: str) -> list[str]:
    """What of a snapshot is not as in the undisturbed one."""
    known = json.loads((expected / "metrics.json").read_text())
    names = [name for name in known if name not in OF_THE_MACHINE]
    faults = [f"{run}: {name} differs" for name in names if metrics[name] != known[name]]
    mine, theirs = (load_file(each / "attribution.safetensors") for each in (folder, expected))
    if mine.keys() != theirs.keys() or any(not mine[n].equal(theirs[n]) for n in theirs):
        faults.append(f"{run}: the attribution differs")
    return faults


def _left_behind(one: Fleet) -> list[str]:
    """Keys that are there after everything is forgotten: locks, leases, messages; and secrets."""
    one.store.expire(time.time() + 1e6, 0.0)
    known = ("forcegauge:1:workers", "forcegauge:1:beat", "forcegauge:celery:_kombu")
    with redis.Redis.from_url(one.settings.redis_url, decode_responses=True) as client:

        def left() -> list[str]:
            return [str(key) for key in client.keys("*") if not str(key).startswith(known)]

        end = time.monotonic() + 60
        # one look decides: a worker that takes a last message meanwhile holds it for a moment
        while (keys := left()) and time.monotonic() < end:
            time.sleep(0.2)
        faults = [f"{key} is left behind" for key in sorted(keys)]
    logs = [path for path in one.folder.glob("*.log") if PASSWORD in path.read_text()]
    return faults + [f"{path.name} tells the password" for path in logs]


def main() -> None:
    """Rounds until one has a fault; a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="forcegauge-chaos-"))
    inputs = make_inputs(folder / "inputs")
    undisturbed(inputs, folder / "expected")
    for number in range(given.rounds):
        place = folder / str(number)
        found = one_round(place, inputs, folder / "expected", given.seed + number)
        print(f"round {number + 1}: {found}", flush=True)  # noqa: T201
        if found.faults:
            raise SystemExit(f"its logs are in {place}")
        shutil.rmtree(place)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
