from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from forcegauge.errors import InputError
from forcegauge.record import (
    KINDS,
    Record,
    open_record,
    probes_by_phase,
    read_record,
    read_scores,
    write_scores,
)
from forcegauge.scores import STATISTICS, TOKEN_STATISTICS, Scores, TokenScores

TYPES = ("chosen", "rejected", "greedy")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    made = open_record(tmp_path / "run", "demo", clock=lambda: 1790000000.0)
    yield made
    made.close()


def _lines(record: Record) -> list[dict[str, Any]]:
    return read_record(record.directory)


def _probe(record: Record, step: int, phase: str = "sft", **fields: object) -> None:
    record.append("probe", fields, phase=phase, step=step)


def test_a_line_is_as_contracted(record: Record) -> None:
    _probe(record, 24, signals={"squeeze_nats": 0.97}, verdict="squeezing")
    [text] = (record.directory / "record.jsonl").read_text().splitlines()
    assert json.loads(text) == {
        "schema": 1,
        "kind": "probe",
        "run": "demo",
        "phase": "sft",
        "step": 24,
        "time": 1790000000.0,
        "signals": {"squeeze_nats": 0.97},
        "verdict": "squeezing",
    }


def test_every_kind_can_be_written_and_read_in_order(record: Record) -> None:
    for kind in KINDS:
        record.append(kind, {}, phase="sft", step=1)
    assert [line["kind"] for line in _lines(record)] == list(KINDS)
    with pytest.raises(ValueError, match="no kind"):
        record.append("other", {}, phase="sft", step=1)


def test_a_line_is_on_the_file_as_soon_as_it_is_appended(record: Record) -> None:
    _probe(record, 1)
    assert (record.directory / "record.jsonl").read_bytes().endswith(b"\n")
    assert len(_lines(record)) == 1


def test_numbers_that_are_not_finite_are_absent(record: Record) -> None:
    scores = {"chosen": {"entropy": {"mean": float("nan"), "n": 3}}}
    _probe(record, 1, scores=scores, signals={"a": float("inf"), "b": 0.0}, loss=float("nan"))
    [line] = _lines(record)
    assert line["scores"] == {"chosen": {"entropy": {"n": 3}}}
    assert line["signals"] == {"b": 0.0}
    assert "loss" not in line


def test_text_of_any_kind_stays_on_its_line(record: Record) -> None:
    message = "line\nbreak \u2028 \udcff 名"
    record.append("error", {"reason": "other", "message": message}, phase="sft", step=1)
    assert [line["message"] for line in _lines(record)] == [message]


def test_the_record_id_is_made_once_and_kept_over_resumes(tmp_path: Path) -> None:
    first = open_record(tmp_path, "demo")
    first.append("run", {"model": "m"}, phase="sft", step=0)
    first.close()
    second = open_record(tmp_path, "demo")
    second.append("run", {"model": "m"}, phase="dpo", step=5)
    second.close()
    assert {line["record_id"] for line in read_record(tmp_path)} == {first.record_id}
    other = open_record(tmp_path / "other", "demo")
    other.close()
    assert other.record_id != first.record_id


def test_opening_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    random.seed(0)
    before = random.getstate()
    open_record(tmp_path, "demo").close()
    assert random.getstate() == before


@pytest.mark.parametrize("run", ["", ".hidden", "a b", "a/b", "é", "x" * 64, "new\nline"])
def test_a_name_that_cannot_be_a_runs_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(InputError, match="cannot name a run"):
        open_record(tmp_path, run)


def test_another_runs_record_is_refused(record: Record) -> None:
    _probe(record, 1)
    with pytest.raises(InputError, match=r"record\.jsonl: this record is of run 'demo'"):
        open_record(record.directory, "other")


def test_a_torn_last_line_is_left_out_when_reading(record: Record) -> None:
    _probe(record, 1)
    _probe(record, 2)
    file = record.directory / "record.jsonl"
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert [line["step"] for line in _lines(record)] == [1]


def test_a_torn_last_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    first = open_record(tmp_path, "demo")
    _probe(first, 1)
    _probe(first, 2)
    first.close()
    file = tmp_path / "record.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    second = open_record(tmp_path, "demo")
    _probe(second, 3)
    second.close()
    assert [line["step"] for line in read_record(tmp_path)] == [1, 3]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    first = open_record(tmp_path, "demo")
    _probe(first, 1)
    first.close()
    file = tmp_path / "record.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    assert len(read_record(tmp_path)) == 1
    second = open_record(tmp_path, "demo")
    _probe(second, 2)
    second.close()
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2]


KILLED = """
import os, signal, sys
from forcegauge.record import open_record
record = open_record(sys.argv[1], "demo")
for step in range(50):
    record.append("probe", {"filler": "x" * 5000}, phase="sft", step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_line_and_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(read_record(tmp_path)) == 50
    open_record(tmp_path, "demo").close()


SECOND = """
import sys
from forcegauge.record import open_record
try:
    open_record(sys.argv[1], "demo")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_second_process_is_refused_while_the_first_writes(record: Record) -> None:
    command = [sys.executable, "-c", SECOND, str(record.directory)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("InputError")
    assert "record.jsonl: another process is writing this record. Give this run another" in said
    record.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_a_forked_worker_that_lives_on_does_not_keep_the_record(record: Record) -> None:
    until, done = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(done)
        os.read(until, 1)
        os._exit(0)
    try:
        record.close()
        command = [sys.executable, "-c", SECOND, str(record.directory)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        os.close(done)
        os.waitpid(worker, 0)
    assert said == ""


def test_in_one_process_the_newest_owner_takes_over(record: Record) -> None:
    _probe(record, 1)
    newer = open_record(record.directory, "demo")
    _probe(newer, 2)
    with pytest.raises(OSError, match="Bad file"):
        _probe(record, 3)
    newer.close()
    assert [line["step"] for line in _lines(record)] == [1, 2]


def test_closing_twice_is_harmless_and_a_closed_record_raises(record: Record) -> None:
    record.close()
    record.close()
    with pytest.raises(OSError, match="Bad file"):
        _probe(record, 1)


def test_threads_may_append_together(record: Record) -> None:
    def work(phase: str) -> None:
        for step in range(50):
            _probe(record, step, phase, filler="x" * 2000)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_phase = probes_by_phase(_lines(record))
    assert {phase: len(lines) for phase, lines in by_phase.items()} == {"a": 50, "b": 50, "c": 50}


FULL = """
import resource, sys
from forcegauge.record import open_record
record = open_record(sys.argv[1], "demo")
record.append("probe", {}, phase="sft", step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    record.append("probe", {"filler": "x" * 5000}, phase="sft", step=2)
except OSError as error:
    print(error.strerror)
record.append("probe", {}, phase="sft", step=3)
"""


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert [line["step"] for line in read_record(tmp_path)] == [1, 3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip(f"no right to mount a small disk: {os.strerror(ctypes.get_errno())}")
    yield folder
    detach = 2
    libc.umount2(os.fsencode(folder), detach)


def test_a_full_disk_raises_and_recording_goes_on_when_there_is_room(small_disk: Path) -> None:
    record = open_record(small_disk, "demo")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 40_000)
    _probe(record, 1)
    with pytest.raises(OSError, match="No space left"):
        _probe(record, 2, filler="x" * 30_000)
    filler.unlink()
    _probe(record, 3, filler="x" * 30_000)
    record.close()
    assert [line["step"] for line in read_record(small_disk)] == [1, 3]


def test_a_full_disk_leaves_the_scores_of_before(small_disk: Path) -> None:
    write_scores(small_disk, 1, _scores(1), phase="sft", baseline=True, per_token=False)
    (small_disk / "filler").write_bytes(b"x" * 40_000)
    with pytest.raises(OSError, match="No space left"):
        write_scores(small_disk, 1, _scores(2, probes=500), phase="sft", baseline=True)
    (small_disk / "filler").unlink()
    assert len(read_scores(small_disk / "scores" / "1.safetensors").ids) == 4
    assert not list(small_disk.rglob(".*"))


def test_a_directory_that_cannot_be_made_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        open_record(tmp_path / "file" / "run", "demo")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{nonsense", "line 2: is not JSON"),
        (b"\xff\xfe", "line 2: is not JSON"),
        (b"[" * 100_000, "line 2: is not JSON"),
        (b"[1]", "line 2: is no line of a record"),
        (b"{}", "line 2: is no line of a record"),
        (b'{"schema":2}', r"line 2: was written by a newer forcegauge \(schema 2, known is 1\)"),
        (b'{"schema":1,"kind":"probe","run":"a","phase":"p","time":1}', "line 2: step: is missing"),
        (b'{"schema":1,"kind":3}', "line 2: kind: is missing or of the wrong kind"),
    ],
)
def test_damage_in_the_middle_is_one_clear_line(record: Record, line: bytes, said: str) -> None:
    _probe(record, 1)
    file = record.directory / "record.jsonl"
    file.write_bytes(file.read_bytes() + line + b"\n")
    _probe(record, 3)
    with pytest.raises(InputError, match=rf"record\.jsonl, {said}.*\.") as caught:
        read_record(file)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_not_continued_and_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_bytes(b"nonsense\n{torn")
    with pytest.raises(InputError, match="line 1: is not JSON"):
        open_record(tmp_path, "demo")
    assert file.read_bytes() == b"nonsense\n{torn"


@pytest.mark.parametrize("name", ["", "record.jsonl", "nowhere"])
def test_a_missing_record_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*Name a run's directory"):
        read_record(tmp_path / name)


def test_probes_come_by_phase_with_the_last_line_per_step(record: Record) -> None:
    for phase, step, value in [
        ("sft", 0, 1),
        ("sft", 10, 2),
        ("sft", 20, 3),
        ("sft", 10, 4),
        ("dpo", 20, 5),
        ("dpo", 30, 6),
    ]:
        _probe(record, step, phase, value=value)
    record.append("end", {"reason": "finished"}, phase="dpo", step=30)
    found = probes_by_phase(_lines(record))
    assert {p: [(x["step"], x["value"]) for x in lines] for p, lines in found.items()} == {
        "sft": [(0, 1), (10, 4), (20, 3)],
        "dpo": [(20, 5), (30, 6)],
    }


def _scores(seed: int, probes: int = 4) -> Scores:
    numbers = np.random.default_rng(seed)
    values = {name: numbers.normal(size=(probes, len(TYPES))) for name in STATISTICS}
    values["eos_logprob"][:] = np.nan
    tokens = TokenScores(
        np.repeat(np.arange(probes, dtype=np.int32), 5),
        np.zeros(5 * probes, np.int32),
        np.tile(np.arange(5, dtype=np.int32), probes),
        numbers.integers(0, 49152, 5 * probes),
        {n: numbers.normal(size=5 * probes).astype(np.float32) for n in TOKEN_STATISTICS},
    )
    return Scores(tuple(f"é{i}" for i in range(probes)), TYPES, values, tokens)


def _tokens_of(path: Path) -> int:
    return int(read_scores(path).per_token.probe.size)


def test_scores_come_back_in_float32_with_names_and_absences(tmp_path: Path) -> None:
    scores = _scores(0)
    path = write_scores(tmp_path, 24, scores, phase="dpo", baseline=False)
    assert path == tmp_path / "scores" / "24.safetensors"
    found = read_scores(path)
    assert (found.ids, found.types) == (scores.ids, scores.types)
    assert found.values.keys() == scores.values.keys()
    for name, array in scores.values.items():
        np.testing.assert_array_equal(found.values[name], array.astype(np.float32))
        assert found.values[name].dtype == np.float64


def test_per_token_arrays_come_back(tmp_path: Path) -> None:
    scores = _scores(0)
    found = read_scores(write_scores(tmp_path, 0, scores, phase="dpo", baseline=True)).per_token
    for name in ("probe", "type", "position", "token"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scores.per_token, name))
        assert getattr(found, name).dtype == getattr(scores.per_token, name).dtype
    assert found.values.keys() == set(TOKEN_STATISTICS)
    for name, array in scores.per_token.values.items():
        np.testing.assert_array_equal(found.values[name], array)


def test_only_baselines_and_the_latest_probe_keep_their_tokens(tmp_path: Path) -> None:
    def write(step: int, phase: str, baseline: bool) -> Path:
        return write_scores(tmp_path, step, _scores(step), phase=phase, baseline=baseline)

    paths = [write(0, "sft", True), write(10, "sft", False), write(20, "sft", False)]
    assert [_tokens_of(path) for path in paths] == [20, 0, 20]
    paths += [write(21, "dpo", True), write(30, "dpo", False), write(25, "dpo", False)]
    assert [_tokens_of(path) for path in paths] == [20, 0, 0, 20, 0, 20]
    assert all(read_scores(path).ids for path in paths)


def test_tokens_are_not_written_when_texts_are_not_kept(tmp_path: Path) -> None:
    write_scores(tmp_path, 0, _scores(0), phase="sft", baseline=True)
    path = write_scores(tmp_path, 0, _scores(1), phase="sft", baseline=True, per_token=False)
    assert _tokens_of(path) == 0
    assert not [*(tmp_path / "scores" / "tokens").iterdir()]


def test_a_damaged_token_file_does_not_stop_the_next_probe(tmp_path: Path) -> None:
    path = write_scores(tmp_path, 1, _scores(0), phase="sft", baseline=False)
    (tmp_path / "scores" / "tokens" / "1.safetensors").write_bytes(b"")
    write_scores(tmp_path, 2, _scores(0), phase="sft", baseline=False)
    assert _tokens_of(path) == 0


def test_a_step_scored_again_is_replaced_whole(tmp_path: Path) -> None:
    write_scores(tmp_path, 5, _scores(0), phase="sft", baseline=False)
    path = write_scores(tmp_path, 5, _scores(1), phase="sft", baseline=False)
    expected = _scores(1).values["entropy"].astype(np.float32)
    np.testing.assert_array_equal(read_scores(path).values["entropy"], expected)
    assert {p.name for p in (tmp_path / "scores").iterdir()} == {"5.safetensors", "tokens"}


def test_files_that_hold_no_scores_are_one_clear_line(tmp_path: Path) -> None:
    damaged, foreign, newer = (tmp_path / f"{n}.safetensors" for n in ("a", "b", "c"))
    damaged.write_bytes(b"nonsense")
    save_file({"x": np.zeros(1)}, foreign)
    save_file({"x": np.zeros(1)}, newer, {"schema": "2"})
    for path, said in [
        (damaged, "cannot be read"),
        (tmp_path / "none.safetensors", "cannot be read"),
        (foreign, "holds no scores"),
        (newer, "newer forcegauge"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            read_scores(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_a_resume_from_an_older_step_takes_back_what_belongs_to_lost_weights(
    tmp_path: Path,
) -> None:
    record = open_record(tmp_path, "run")
    record.append("run", {"resumed_from": None}, phase="sft", step=0)
    for step in (0, 4, 8):
        record.append("probe", {}, phase="sft", step=step)
    record.append("error", {"reason": "greedy"}, phase="sft", step=8)
    record.append("end", {"reason": "error"}, phase="sft", step=8)
    record.append("run", {"resumed_from": 5}, phase="sft", step=5)
    record.close()
    kept = [(line["kind"], line["step"]) for line in read_record(tmp_path)]
    assert kept == [("run", 0), ("probe", 0), ("probe", 4), ("error", 8), ("run", 5)]
