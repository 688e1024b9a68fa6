"""Training on several ranks: the same scores, nothing disturbed, and no rank left waiting."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcegauge.errors import InputError
from forcegauge.record import probes_by_phase, read_record, read_scores
from tests import tiny

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "ranks" / "train.py"
TRAINER = SCRIPT.with_name("trainer.py")
ZERO = SCRIPT.with_name("zero.py")
DEEPSPEED = Path("build/deepspeed")
ALL = [0, 1 << 30]
LATE = [8, 9]
"""A forward of a probe after the baseline, of those that each rank scores one share with."""

OWN: dict[str, Any] = {"own": True}

FAULTS: dict[str, dict[str, Any]] = {
    "all ranks, every forward": {"calls": ALL},
    "one rank, a forward": {"rank": 1, "calls": LATE},
    "one rank, no memory": {"rank": 1, "calls": LATE, "memory": True},
    "one rank, while choosing": {"rank": 1, "calls": [2, 3]},
    "one rank, greedy": {"at": "greedy", "rank": 1, "calls": [1, 2]},
    "one rank, its scorer": {"at": "scorer", "rank": 1, "calls": [0, 1]},
    "rank 0, judging": {"at": "judge", "rank": 0, "calls": [1, 2]},
}

WRAPS = ("ddp", "fsdp2", "fsdp2 head", "fsdp1")
BIT_IDENTICAL = ("ddp", "fsdp2", "fsdp1")
FAULTY = ("ddp", "fsdp2")

ONE = {"plain": {"wrap": "plain"}}
TWO = {
    **{wrap: {"wrap": wrap} for wrap in WRAPS},
    **{f"{wrap}, watched": {"wrap": wrap, **OWN} for wrap in BIT_IDENTICAL},
    **{f"{wrap}, alone": {"wrap": wrap, **OWN, "watched": False} for wrap in BIT_IDENTICAL},
    **{f"{w}, {f}": {"wrap": w, **OWN, "fault": FAULTS[f]} for w in FAULTY for f in FAULTS},
    "to be resumed": {"wrap": "fsdp2", "steps": 4},
    "to be stopped": {"wrap": "fsdp2", "on_alarm": "stop", "loss": math.nan},
}
THREE = {
    "ddp, three": {"wrap": "ddp"},
    "fsdp2, three": {"wrap": "fsdp2"},
    "resumed": {"wrap": "ddp", "first": 4, "directory": "to be resumed"},
}


TRAINERS = {
    f"{kind}, {how}": {"kind": kind, "watched": how == "watched"}
    for kind in ("sft", "dpo")
    for how in ("watched", "alone")
}
STAGES = {
    f"zero{stage}, {how}": {"stage": stage, "watched": how != "alone", "own": how != "same"}
    for stage in (2, 3)
    for how in ("watched", "alone", "same")
}
UNDER_ZERO = {
    f"{kind}, zero3, {how}": {"kind": kind, "stage": 3, "watched": how == "watched"}
    for kind in ("sft", "dpo")
    for how in ("watched", "alone")
}


def started(script: Path, ranks: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, f"--nproc-per-node={ranks}", str(script), *arguments],
        env=surroundings(deepspeed=script == ZERO),
        stderr=subprocess.PIPE,
        text=True,
    )


def surroundings(*, deepspeed: bool) -> dict[str, str]:
    """The environment of a process that finds these tests, and DeepSpeed where it is asked for."""
    places = [Path.cwd(), *([DEEPSPEED.resolve()] if deepspeed else [])]
    return {**os.environ, "PYTHONPATH": ":".join(map(str, places)), "OMP_NUM_THREADS": "1"}


def launch(script: Path, ranks: int, *arguments: str) -> None:
    with started(script, ranks, *arguments) as process:
        try:
            said = process.communicate(timeout=600)[1]
        finally:
            process.terminate()
    assert process.returncode == 0, said[-5000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case of every world size; nothing in it hung."""
    folder = tmp_path_factory.mktemp("ranks")
    for ranks, cases in ((1, ONE), (2, TWO), (3, THREE)):
        launch(SCRIPT, ranks, str(folder), json.dumps(cases))
    return folder


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what TRL's trainers did on two ranks."""
    folder = tmp_path_factory.mktemp("trainers")
    launch(TRAINER, 2, str(folder), json.dumps(TRAINERS))
    return folder


def facts(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


def training(folder: Path, name: str) -> list[tuple[str, str, float]]:
    """What training left on each of two ranks: weights, optimizer state, random numbers."""
    found = (facts(folder, name, rank) for rank in range(2))
    return [(each["weights"], each["optimizer"], each["random"]) for each in found]


def steps(directory: Path) -> list[int]:
    return [line["step"] for line in probes_by_phase(read_record(directory)).get("train", [])]


def finite(directory: Path, phase: str = "train") -> int:
    """Probes after the baseline that found something."""
    lines = probes_by_phase(read_record(directory))[phase][1:]
    return sum("chosen_change_nats" in line["signals"] for line in lines)


def test_all_ranks_stop_at_the_step_at_which_an_alarm_asks_for_it(trained: Path) -> None:
    one, other = (facts(trained, "to be stopped", rank)["step"] for rank in range(2))
    assert one == other < facts(trained, "fsdp2", 0)["step"]
    assert read_record(trained / "to be stopped")[-1]["reason"] == "stopped"


@pytest.mark.parametrize("name", [*WRAPS, "ddp, three", "fsdp2, three", "to be resumed"])
def test_scores_are_those_of_one_process(name: str, trained: Path) -> None:
    assert_same_scores(trained / name, trained / "plain")


def assert_same_scores(found: Path, wanted: Path, last: int = 8) -> None:
    assert steps(found) == steps(wanted)
    assert len(steps(wanted)) >= 6
    for step in (step for step in steps(wanted) if step <= last):
        assert_same_scores_at(step, found, wanted)


def assert_same_scores_at(step: int, found: Path, wanted: Path) -> None:
    one, other = (read_scores(each / f"scores/{step}.safetensors") for each in (found, wanted))
    assert (one.ids, one.types) == (other.ids, other.types)
    assert np.isfinite(one.values["logprob_mean"]).any(0).all()
    for name in ("logprob_mean", "argmax_logprob_mean", "entropy", "logprob_prefix"):
        np.testing.assert_allclose(one.values[name], other.values[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrap", BIT_IDENTICAL)
def test_training_is_bit_identical_on_two_ranks(wrap: str, trained: Path) -> None:
    assert training(trained, f"{wrap}, watched") == training(trained, f"{wrap}, alone")
    assert finite(trained / f"{wrap}, watched") >= 3
    assert steps(trained / f"{wrap}, watched")[0] == 0


@pytest.mark.parametrize("wrap", FAULTY)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_on_a_rank_disturbs_the_training(wrap: str, fault: str, trained: Path) -> None:
    assert training(trained, f"{wrap}, {fault}") == training(trained, f"{wrap}, alone")


@pytest.mark.parametrize("wrap", FAULTY)
@pytest.mark.parametrize(
    ("fault", "counted", "probes"),
    [
        ("all ranks, every forward", {"scoring": 6}, 0),
        ("one rank, a forward", {"scoring": 1}, 4),
        ("one rank, no memory", {"out_of_memory": 1}, 4),
        ("one rank, while choosing", {}, 5),
        ("one rank, greedy", {"greedy": 1}, 5),
        ("one rank, its scorer", {"scoring": 1}, 4),
        ("rank 0, judging", {"scoring": 1}, 4),
    ],
)
def test_a_fault_on_a_rank_skips_a_probe_and_is_counted_on_all(
    wrap: str, fault: str, counted: dict[str, int], probes: int, trained: Path
) -> None:
    for rank in range(2):
        assert facts(trained, f"{wrap}, {fault}", rank)["failures"] == counted
    assert len(steps(trained / f"{wrap}, {fault}")[1:]) == probes


def test_only_rank_0_has_an_endpoint_and_all_know_the_verdict(trained: Path) -> None:
    first, second = (facts(trained, "ddp, watched", rank) for rank in range(2))
    assert first["port"]
    assert second["port"] is None
    assert first["verdict"] == second["verdict"] == "learning"


def test_a_run_goes_on_with_another_number_of_ranks(trained: Path) -> None:
    lines = read_record(trained / "to be resumed")
    assert [line["kind"] for line in lines].count("run") == 2
    assert steps(trained / "to be resumed") == steps(trained / "plain")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what DeepSpeed's engine did on two ranks."""
    if not (DEEPSPEED / "ready").exists():
        pytest.skip("make build/deepspeed/ready")
    folder = tmp_path_factory.mktemp("zero")
    launch(ZERO, 2, str(folder), json.dumps({**STAGES, **UNDER_ZERO}))
    return folder


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_is_bit_identical_on_two_ranks(stage: int, zero: Path) -> None:
    assert training(zero, f"zero{stage}, watched") == training(zero, f"zero{stage}, alone")
    assert finite(zero / f"zero{stage}, watched") >= 3


@pytest.mark.parametrize("stage", [2, 3])
def test_scores_under_zero_are_those_of_one_process(stage: int, zero: Path, trained: Path) -> None:
    # ZeRO rounds gradients otherwise, and Adam makes steps of that: later weights are others
    assert_same_scores(zero / f"zero{stage}, same", trained / "plain", last=1)


@pytest.mark.parametrize("stage", [2, 3])
def test_zeros_own_checkpoint_is_scored_as_the_agent_scored_its_weights(
    stage: int, zero: Path, tmp_path: Path
) -> None:
    run, start, again = zero / f"zero{stage}, same", tmp_path / "start", tmp_path / "again"
    tiny.probe_set(5).save(tmp_path / "probes.jsonl")
    for part in (tiny.llama(), tiny.tokenizer()):
        part.save_pretrained(start)
    command = [str(Path(sys.executable).with_name("forcegauge")), "score", f"--run-dir={again}"]
    given = {"model": run / "saved", "probes": tmp_path / "probes.jsonl", "baseline": start}
    options = [f"--{name}={path}" for name, path in given.items()]
    subprocess.run([*command, *options], env=surroundings(deepspeed=True), check=True)
    assert steps(again) == [0, 8]
    assert_same_scores_at(8, again, run)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trl_is_bit_identical_under_ddp(kind: str, trainers: Path) -> None:
    assert_the_trainer_cannot_tell(trainers, kind, kind, "DistributedDataParallel")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trl_is_bit_identical_under_zero(kind: str, zero: Path) -> None:
    assert_the_trainer_cannot_tell(zero, f"{kind}, zero3", kind, "DeepSpeedEngine")


def assert_the_trainer_cannot_tell(folder: Path, name: str, kind: str, wrapper: str) -> None:
    assert training(folder, f"{name}, watched") == training(folder, f"{name}, alone")
    assert finite(folder / f"{name}, watched" / "forcegauge", kind) >= 3
    for rank in range(2):
        found = facts(folder, f"{name}, watched", rank)
        assert found["wrapper"] == wrapper
        assert found["failures"] == {}


def test_sigterm_ends_all_ranks_and_the_record(tmp_path: Path) -> None:
    cases = {"told": {"wrap": "fsdp2", "steps": 1_000_000}}
    with started(SCRIPT, 2, str(tmp_path), json.dumps(cases)) as process:
        try:
            wait_until(lambda: len(steps(tmp_path / "told")) > 3)
            process.send_signal(signal.SIGTERM)
            # torchrun kills what is left after 30 s: it must not have come to that
            process.communicate(timeout=25)
        finally:
            process.kill()
    last = read_record(tmp_path / "told")[-1]
    assert (last["kind"], last["reason"]) == ("end", "signal")


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(InputError):  # there is no record yet
            if holds():
                return
        time.sleep(0.2)
    raise TimeoutError
