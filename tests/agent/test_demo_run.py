from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from forcegauge.demo.run import empty_directory, new_directory
from forcegauge.demo.trainers import Recipe, demo_probes, training_pairs
from forcegauge.errors import InputError
from forcegauge.probes import UNTRAINED_NATURAL

PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from forcegauge.cli import main
main()
"""
"""The command line with Ctrl-C heard: a shell's background jobs are started deaf to it."""


def start_demo(folder: Path, *options: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "demo", *options],
        cwd=folder,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(record: Path) -> list[dict[str, Any]]:
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().split("\n")[:-1]]


def test_the_pairs_that_are_trained_on_are_all_different() -> None:
    ids = [pair.id for pair in training_pairs(Recipe())]
    assert len(set(ids)) == len(ids) == Recipe().pairs


def test_probes_ask_training_prompts_and_have_every_untrained_type() -> None:
    probes = demo_probes(Recipe())
    asked = {pair.prompt_key for pair in training_pairs(Recipe())}
    assert len(probes) == Recipe().probes
    assert all(
        json.dumps(probe.as_json()["prompt"], sort_keys=True) in asked for probe in probes.probes
    )
    assert set(UNTRAINED_NATURAL) <= set(probes.types)


def test_both_recipes_ask_the_same_probes() -> None:
    assert demo_probes(Recipe()).hash == demo_probes(Recipe(healthy=True)).hash


def test_a_second_run_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    made = [new_directory(tmp_path / "runs", "demo").name for _ in range(3)]
    assert made == ["demo-1", "demo-2", "demo-3"]


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="no run is overwritten"):
        empty_directory(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        empty_directory(tmp_path / "file" / "run")


def test_a_busy_port_is_one_line_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = start_demo(tmp_path, "--port", str(port))
        out, err = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert f"port: {port} on 127.0.0.1 is in use" in err
    assert list(tmp_path.iterdir()) == []


def test_a_switched_off_agent_is_told_at_once(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--port", "0", FORCEGAUGE_DISABLED="1")
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "FORCEGAUGE_DISABLED is set" in err


@pytest.mark.slow
def test_ctrl_c_leaves_a_readable_record_and_a_report(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--port", "0", "-o", "run")
    record = tmp_path / "run" / "record.jsonl"
    deadline = time.monotonic() + 300
    while not any(line["kind"] == "probe" for line in lines(record)):
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    demo.send_signal(signal.SIGINT)
    try:
        out, err = demo.communicate(timeout=120)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert "Stopped. The record is run/record.jsonl" in " ".join(out.split())
    assert err.strip() == ""
    assert lines(record)[-1]["kind"] == "end"
    assert lines(record)[-1]["reason"] == "signal"
    assert (tmp_path / "run" / "report.html").exists()
