"""Whatever breaks: training goes on, the fault is counted, nothing hangs, the record is whole."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from forcegauge import journal
from forcegauge.errors import InputError
from forcegauge.exporter import Endpoint
from forcegauge.gauge import ForceGauge
from forcegauge.record import Line, probes_by_phase, read_record
from tests import tiny
from tests.agent.test_gauge import gauge, steps, train

SECONDS = 120


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    """No test here hangs: `pytest.fail` is no `Exception`, so that no guard holds it."""

    def fail(*_: object) -> None:
        pytest.fail(f"it hangs for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def lines(directory: Path, kind: str) -> list[Line]:
    return [line for line in read_record(directory) if line["kind"] == kind]


def failures_served(watched: ForceGauge, reason: str) -> float:
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    name = f'forcegauge_probe_failures_total{{reason="{reason}",run="tiny"}} '
    return float(page.partition(name)[2].splitlines()[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_a_verdict_and_no_fault(
    value: float, tmp_path: Path
) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1) as watched:
        watched.step(model, 0)
        for step in range(1, 4):
            torch.nn.init.constant_(model.lm_head.weight, value)
            watched.step(model, step)
    assert steps(tmp_path) == [0, 1, 2, 3]
    assert watched.failures.get("scoring", 0) == 0
    assert watched.judgement is not None
    assert watched.judgement.verdict == "diverging"
    assert lines(tmp_path, "probe")[-1]["signals"]["nonfinite_ratio"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_format_is_scored_on(dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = tiny.llama()
    with gauge(tmp_path) as watched:
        train(model, watched, 1, 2)
        train(model.to(dtype), watched, 3, 8)
    assert steps(tmp_path) == [0, 1, 2, 4, 8]
    assert not watched.failures


def test_a_model_on_another_device_than_its_weights_is_counted_until_it_is_back(
    tmp_path: Path,
) -> None:
    model, gone = tiny.llama(), torch.nn.Module.to(tiny.llama(), "meta")
    with gauge(tmp_path, every=1) as watched:
        watched.step(model, 0)
        for step in range(1, 4):
            watched.step(gone, step)
        assert failures_served(watched, "scoring") == 3
        watched.step(model, 4)
    assert steps(tmp_path) == [0, 4]
    assert [line["reason"] for line in lines(tmp_path, "error")].count("scoring") == 3


def test_half_a_model_on_another_device_is_counted(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1) as watched:
        watched.step(model, 0)
        model.lm_head.to("meta")
        watched.step(model, 1)
    assert watched.failures["scoring"] == 1
    assert steps(tmp_path) == [0]


def test_without_a_tokenizer_each_probe_is_a_counted_fault(tmp_path: Path) -> None:
    watched = ForceGauge(tiny.probe_set(), None, run="tiny", directory=tmp_path, port=0, every=4)
    with watched:
        train(tiny.llama(), watched, 1, 4)
        assert failures_served(watched, "scoring") > 0
    assert probes_by_phase(read_record(tmp_path)) == {}
    assert lines(tmp_path, "error")
    assert lines(tmp_path, "end")[0]["reason"] == "finished"


def test_a_tokenizer_that_breaks_under_way_costs_greedy_outputs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tiny.tokenizer()

    def broken(*_: object, **__: object) -> None:
        raise OSError("the tokenizer's file is gone")

    watched = ForceGauge(
        tiny.probe_set(), words, run="tiny", directory=tmp_path, port=0, every=4, budget=None
    )
    with watched:
        train(tiny.llama(), watched, 1, 2)
        for name in ("decode", "batch_decode", "__call__", "encode"):
            monkeypatch.setattr(type(words), name, broken)
        model = tiny.llama()
        for step in range(3, 9):
            watched.step(model, step)
    assert steps(tmp_path) == [0, 1, 2, 4, 8]
    assert set(watched.failures) <= {"greedy"}


def test_an_endpoint_that_dies_under_way_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Endpoint, snapshot: object) -> None:
        raise OSError("the socket is gone")

    with gauge(tmp_path, every=1) as watched:
        watched.step(tiny.llama(), 0)
        monkeypatch.setattr(Endpoint, "publish", broken)
        train(tiny.llama(), watched, 1, 4)
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert watched.failures["exporter"] > 0
    assert set(watched.failures) <= {"exporter", "record"}


def test_the_exporter_failing_from_the_start_costs_no_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no snapshot today")

    monkeypatch.setattr(journal, "build_snapshot", broken)
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 4)
    assert steps(tmp_path) == [0, 1, 2, 4]
    assert watched.failures["exporter"] > 0


FULL = """
import resource, sys
from pathlib import Path
import torch
from tests import tiny
torch.set_num_threads(1)
from tests.agent.test_faults import failures_served
from tests.agent.test_gauge import gauge, train
directory = Path(sys.argv[1])
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
with gauge(directory, every=1) as watched:
    model = train(tiny.llama(), watched, 1, 1)
    limit((directory / "record.jsonl").stat().st_size + 100)
    train(model, watched, 2, 3)
    counted = failures_served(watched, "record")
    limit(resource.RLIM_INFINITY)
    train(model, watched, 4, 4)
print(int(counted), watched.failures["record"])
"""


def test_a_full_disk_is_counted_and_the_record_goes_on_when_there_is_room_again(
    tmp_path: Path,
) -> None:
    """A limit on the size of files: like a full disk it fails in the middle of a line."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    served, counted = map(int, done.stdout.split())
    assert 2 <= served <= counted
    assert steps(tmp_path) == [0, 1, 4]
    assert lines(tmp_path, "end")[0]["reason"] == "finished"


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a monitor that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_monitor_that_never_answers_changes_nothing(tmp_path: Path, deaf: int) -> None:
    with gauge(tmp_path, run="deaf", monitor=f"http://127.0.0.1:{deaf}") as watched:
        train(tiny.llama(), watched, 1, 4)
    client = watched._journal.client
    assert client is not None
    client._leave()  # or it would go on trying
    assert steps(tmp_path) == [0, 1, 2, 4]
    assert not watched.failures


def test_a_probe_that_fails_leaves_no_thread_and_no_hook_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forcegauge.scorer import Scorer

    def broken(*_: object, **__: object) -> None:
        raise InputError("no scores today")

    model = tiny.llama()
    with gauge(tmp_path) as watched:
        watched.step(model, 0)
        before = threading.active_count(), hooks(model)
        monkeypatch.setattr(Scorer, "score", broken)
        train(model, watched, 1, 8)
        assert (threading.active_count(), hooks(model)) == before
    assert watched.failures["scoring"] == 4


def hooks(model: Any) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
