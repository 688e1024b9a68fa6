"""Recorded finetunes as Prometheus would have scraped them: 50 runs over 24 hours.

The records are the alarms' (`tests/benchmarks/records`): what they hold goes through the agent's
own detector and exporter, the snapshots through the monitor's. The compact records keep neither
argmax mass by response type nor times and costs: the mass is taken as exp of the argmax log-prob,
the steps are spread over the hours, a probe takes some seconds, and in one run two probes fail.
Runs of the same record differ by millionths, so that no order among them is chance: nothing is
random, and every version of Prometheus answers the same.
"""

from __future__ import annotations

import json
import math
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from prometheus_client.core import Metric as Family

from forcegauge.detectors import Detector, Judgement
from forcegauge.exporter import RunCollector, RunState, build_snapshot
from forcegauge.phase import pushes_down
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor.exporter import Requests, make_registry
from forcegauge_monitor.records import Worker
from forcegauge_monitor.store import Store
from forcegauge_monitor.totals import Overview
from tests.benchmarks.calibration import RECORDS, Run, load
from tests.servers import Prometheus, fetch, free_port, require, server

END = 1_767_224_160
"""The moment at which the dashboards are looked at, in Unix seconds; everything is before it."""
HOURS = 24
START = END - HOURS * 3600
SPACING = 240
"""Seconds between two scrapes, below the five minutes after which Prometheus forgets a value."""
WINDOW = (START, END, SPACING)

SQUEEZING, HEALTHY, DIVERGING = "dpo-squeeze-slow", "ipo-both", "dpo-diverge"
LOOKED_AT = (SQUEEZING, HEALTHY, DIVERGING)
CALM = ("ipo-both", "grpo-both", "dpo-noisy", "sft-0", "sft-both", "dpo-gentle-0")
RUNS = 50

FAILED = {"dpo-noisy": {"out_of_memory": 2}}
"""What failed in a run's last phase."""
BEFORE = {"sft": "sft-0", "both": "sft-both"}
"""The recorded finetune that a run's phase started from."""

SNAPSHOTS = Path(__file__).with_name("snapshots.json")

MONITOR = {"instance": "monitor:8790", "job": "monitor"}
SNAPSHOT_SECONDS = 1500.0
LINGERS = 900.0
"""Seconds that a process lives on after its run has ended."""

Exposition = Mapping[str, float]
"""Value by series, written as PromQL writes it."""
Timeline = list[tuple[float, Exposition]]


@dataclass(frozen=True)
class Replayed:
    """One run: the record that it repeats and when its process lived."""

    name: str
    record: str
    number: int

    @property
    def began(self) -> float:
        """Unix seconds of the first phase's baseline."""
        return START + 600 * (self.number % 7)

    @property
    def ended(self) -> float:
        """Unix seconds of the last step; one in ten ends early, the others go on after `END`."""
        return END - 7200 if self.number % 10 == 9 else END + 600

    @property
    def probe_seconds(self) -> float:
        """How long each of its probes takes."""
        return 12 + 0.1 * self.number

    def apart(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded probe with its nats a little smaller, for each run another little."""
        factor = 1 - 1e-6 * self.number
        levels = {name: [v * factor for v in each] for name, each in row["levels"].items()}
        signals = {k: v * factor if k.endswith("_nats") else v for k, v in row["signals"].items()}
        return {**row, "levels": levels, "signals": signals}

    @property
    def target(self) -> dict[str, str]:
        """The labels that Prometheus adds to what it scrapes."""
        cluster, namespace = ("east", "west")[self.number % 2], ("chat", "code")[self.number // 25]
        address = f"10.0.{self.number % 2}.{self.number}:9790"
        return {"cluster": cluster, "namespace": namespace, "instance": address, "job": "agents"}


def fleet() -> list[Replayed]:
    """Every record once, those that are looked at first, then calm ones under other names."""
    others = sorted(path.stem for path in RECORDS.glob("*.jsonl") if path.stem not in LOOKED_AT)
    names = [(name, name) for name in (*LOOKED_AT, *others)]
    calm = [CALM[n % len(CALM)] for n in range(RUNS - len(names))]
    names += [(f"{record}.{n // len(CALM) + 2}", record) for n, record in enumerate(calm)]
    return [Replayed(name, record, number) for number, (name, record) in enumerate(names)]


@cache
def _record(name: str) -> Run:
    return load(RECORDS / f"{name}.jsonl")


def _phases(name: str) -> list[Run]:
    last = _record(name)
    before = BEFORE.get(last.config["start"])
    return [_record(before), last] if before else [last]


def _loss(run: Run) -> str:
    return "sft" if run.config["loss"] == "both" else str(run.config["loss"])


def states(run: Replayed) -> Iterator[tuple[float, RunState]]:
    """What the agent knew after each probe and each step, with its time."""
    phases = _phases(run.record)
    steps = sum(phase.length for phase in phases)
    pace = (run.ended - run.began) / steps
    known = RunState(run.name, "", "SmolLM2-135M-Instruct", "ab" * 32, "0.1.0")
    offset, probes = 0, 0
    for phase in phases:
        for step, row, judgement in _judged(phase, offset):
            now = run.began + step * pace
            known = replace(known, phase=_loss(phase), train_step=step)
            if row is not None:
                probes += 1
                known = _probed(known, run.apart(row), judgement, step, now)
            known = replace(known, probe_duration=run.probe_seconds)
            spent = probes * run.probe_seconds / max(now - run.began, run.probe_seconds * 500)
            failed = FAILED.get(run.name, {}) if phase is phases[-1] and step > offset + 2 else {}
            known = replace(known, overhead_ratio=spent, failures=failed)
            yield now, known
        offset += phase.length
    yield run.ended, replace(known, active=False)


def _judged(phase: Run, offset: int) -> Iterator[tuple[int, Mapping[str, Any] | None, Judgement]]:
    detector = Detector(offset, pushes_down(_loss(phase)))
    probes = {row["step"]: row for row in phase.probes}
    judgement = detector.idle()
    for step in range(phase.length + 1):
        row = probes.get(step)
        if row is not None and step:
            judgement = detector.update(offset + step, row["signals"], row["noise"])
        yield offset + step, row, judgement


def _probed(
    known: RunState, row: Mapping[str, Any], judgement: Judgement, step: int, now: float
) -> RunState:
    scores = {name: _statistics(*levels) for name, levels in row["levels"].items()}
    return replace(
        known,
        verdict=judgement.verdict,
        since_step=judgement.since_step,
        probe_step=step,
        probe_timestamp=now,
        scores=scores,
        baseline=scores if row["step"] == 0 else known.baseline,
        noise={name: v for name, v in row["noise"].items() if name in RESPONSE_TYPES},
        signals=row["signals"],
        alarms=judgement.alarms,
    )


def _statistics(logprob: float, argmax: float, entropy: float) -> dict[str, dict[str, float]]:
    found = {"logprob_mean": logprob, "argmax_logprob_mean": argmax, "entropy": entropy}
    found["argmax_mass"] = math.exp(argmax)
    return {name: {"mean": value} for name, value in found.items()}


def _series(families: Iterable[Family], target: Mapping[str, str]) -> Exposition:
    up = {_written("up", target): 1.0}
    return up | {
        _written(sample.name, {**sample.labels, **target}): sample.value
        for family in families
        for sample in family.samples
    }


def _written(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}"


def agent_timeline(run: Replayed) -> Timeline:
    """What the run's endpoint showed and from when on; nothing once its process has gone."""
    shown: Timeline = []
    for now, state in states(run):
        collector = RunCollector()
        collector.publish(build_snapshot(state))
        shown.append((now, _series(collector.collect(), run.target)))
    return [*shown, (run.ended + LINGERS, {})]


@dataclass
class Known:
    """Stands for the monitor's store: what it would have held at ``now``."""

    lives: Mapping[Replayed, list[tuple[float, RunState]]]
    snapshots: list[tuple[float, dict[str, Any]]]
    now: float = START

    def overview(self) -> Overview:
        """All that is exported, at ``now``."""
        begun = {run: found for run in self.lives if (found := self._state(run)) is not None}
        active = sum(state.active for state in begun.values())
        done = [(at, each) for at, each in self.snapshots if at <= self.now]
        busy = any(at - SNAPSHOT_SECONDS < self.now < at for at, _ in self.snapshots)
        workers = [Worker("one", "cpu", busy, self.now), Worker("two", "cpu", False, self.now)]
        return Overview(
            known=len(begun),
            live=active,
            ended=len(begun) - active,
            failed=0,
            beat=self.now,
            verdicts={run.name: state.verdict for run, state in begun.items()},
            results={each["run"]: (each["step"], each["numbers"]) for _, each in done},
            counts={
                (each["run"], "done"): sum(other["run"] == each["run"] for _, other in done)
                for _, each in done
            },
            stages=self._stages(),
            workers=workers,
            scores={},
        )

    def _state(self, run: Replayed) -> RunState | None:
        place = bisect_right(self.lives[run], self.now, key=lambda pair: pair[0])
        return self.lives[run][place - 1][1] if place else None

    def _stages(self) -> dict[tuple[str, str], tuple[str, str, int, int]]:
        open_ones = {}
        for at, each in self.snapshots:
            left = at - self.now
            if 0 < left < SNAPSHOT_SECONDS:
                done = int(40 * (1 - left / SNAPSHOT_SECONDS))
                open_ones[each["run"], str(at)] = ("cpu", "running", done, 40)
        return open_ones


def snapshots() -> list[tuple[float, dict[str, Any]]]:
    """The recorded snapshots, as if each of the runs that are looked at had made them."""
    recorded = json.loads(SNAPSHOTS.read_text(encoding="utf-8"))
    found = []
    for run in fleet()[: len(LOOKED_AT)]:
        steps = sum(phase.length for phase in _phases(run.record))
        for place, numbers in enumerate(recorded, 1):
            share = place / (len(recorded) + 0.25)
            at = run.began + share * (run.ended - run.began)
            facts = {"run": run.name, "step": int(share * steps), "numbers": numbers}
            found.append((at, facts))
    return sorted(found, key=lambda pair: pair[0])


def monitor_timeline(lives: Mapping[Replayed, list[tuple[float, RunState]]]) -> Timeline:
    """What the monitor's endpoint showed at every scrape."""
    known, requests = Known(lives, snapshots()), Requests()
    registry = make_registry(cast(Store, known), requests)
    shown: Timeline = []
    for now in scrapes():
        known.now = now
        shown.append((now, _series(registry.collect(), MONITOR)))
        for _ in lives:
            requests.seen(200)
    return shown


def scrapes() -> range:
    """When Prometheus looked, in Unix seconds: never on a query's own second, for whether a range
    takes in its first moment is another matter from Prometheus 3 on."""
    return range(START + 7, END, SPACING)


def write(file: TextIO, timeline: Timeline) -> int:
    """Samples at every scrape, as OpenMetrics writes them; how many."""
    written = 0
    ends = [*(now for now, _ in timeline[1:]), END + 1]
    for (begin, shown), end in zip(timeline, ends, strict=True):
        times = [now for now in scrapes() if begin <= now < end]
        for series, value in shown.items():
            file.write("".join(f"{series} {value!r} {now}\n" for now in times))
        written += len(times) * len(shown)
    return written


def backfill(folder: Path) -> int:
    """Blocks of the whole replay in ``folder/data``, made by promtool; how many samples."""
    lives = {run: list(states(run)) for run in fleet()}
    text = folder / "replay.om"
    with text.open("w", encoding="utf-8") as file:
        written = sum(write(file, agent_timeline(run)) for run in lives)
        written += write(file, monitor_timeline(lives))
        file.write("# EOF\n")
    command = [require("promtool"), "tsdb", "create-blocks-from", "--max-block-duration=54h"]
    command += ["openmetrics", "-q", str(text), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)
    text.unlink()
    return written


@contextmanager
def replayed(folder: Path, program: str = "prometheus") -> Iterator[Prometheus]:
    """A real Prometheus over the blocks in ``folder/data``; it scrapes nothing."""
    (folder / "prometheus.yml").write_text("{}")
    address = f"127.0.0.1:{free_port()}"
    command = [
        require(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address={address}",
    ]
    with server(command, folder, lambda: fetch(f"http://{address}/-/ready")[0] == 200):
        yield Prometheus(f"http://{address}")
