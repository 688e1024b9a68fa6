"""`forcegauge watch` as a process: on a terminal, in a pipe, and when something is wrong."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forcegauge.record import open_record
from tests.servers import free_port, wait_for
from tests.synthetic_run import two_phase_run

PROGRAM = [sys.executable, "-c", "from forcegauge.cli import main; main()", "watch"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


class Terminal:
    """A process on a terminal of 80 x 24."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._end, other = pty.openpty()
        size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, **size, **environment},
            start_new_session=True,
        )
        os.close(other)
        self.seen = ""

    def read(self) -> str:
        """All that was written so far; blocks while there is nothing new."""
        try:
            self.seen += os.read(self._end, 1 << 16).decode(errors="replace")
        except OSError:
            self.process.wait(60)
        return self.seen

    def until(self, text: str) -> None:
        wait_for(lambda: text in self.read())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return two_phase_run(tmp_path)


def test_a_pipe_gets_a_line_per_probe_and_the_end(finished: Path) -> None:
    done = run(str(finished))
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert sum(line.startswith("forcegauge step ") for line in lines) == 22
    assert lines[-1] == "forcegauge: the run has ended: finished"
    assert "\x1b" not in done.stdout


def test_a_terminal_without_unicode_gets_lines_it_can_show(finished: Path) -> None:
    done = run(str(finished), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_a_dumb_terminal_gets_lines(finished: Path) -> None:
    terminal = Terminal(str(finished), TERM="dumb")
    try:
        terminal.until("the run has ended: finished")
        assert "\x1b" not in terminal.seen
        assert "forcegauge step 44: squeezing since 26" in terminal.seen
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()


def test_a_terminal_gets_a_screen_that_stays_after_the_end(finished: Path) -> None:
    terminal = Terminal(str(finished), NO_COLOR="1")
    try:
        wait_for(lambda: terminal.read() and terminal.process.poll() is not None)
        left = terminal.seen.rpartition("\x1b[?1049l")[2]
        assert "SQUEEZING" in left
        assert "\x1b[3" not in left
        assert terminal.process.returncode == 0
    finally:
        terminal.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal with a run that goes on."""
    record = open_record(tmp_path, "live", clock=time.time)
    facts = {"settings": {"every": 4, "loss": "dpo"}, "model": "m", "resumed_from": None}
    record.append("run", facts, phase="dpo", step=0)
    record.close()
    terminal = Terminal(str(tmp_path), "--seconds", "0.2")
    try:
        yield terminal
    finally:
        terminal.close()


def probe(folder: Path, step: int) -> None:
    record = open_record(folder, "live")
    facts = {"scores": {}, "signals": {}, "noise": {}, "verdict": "learning"}
    record.append("probe", facts, phase="dpo", step=step)
    record.close()


def test_a_run_is_followed_live_and_left_with_ctrl_c(running: Terminal, tmp_path: Path) -> None:
    running.until("NOTHING PROBED YET")
    probe(tmp_path, 3)
    running.until("step 3 ")
    probe(tmp_path, 7)
    running.until("step 7 ")
    running.process.send_signal(signal.SIGINT)
    # what is left to be drawn is more than a terminal holds that nobody reads
    wait_for(lambda: running.read() and running.process.poll() is not None)
    assert running.process.returncode == 0
    assert "Traceback" not in running.seen


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "nowhere: there is no such folder"),
        (
            ("{empty}",),
            "no record.jsonl can be read here. A run writes it to OUTPUT_DIR/forcegauge",
        ),
        (("{above}",), "Did you mean {above}/out"),
        (("{empty}", "--run", "x"), "--run: is for the URL of an agent or a monitor"),
        (("http://user@host",), "holds more than its place"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    places = {"empty": tmp_path / "empty", "above": tmp_path / "above"}
    places["empty"].mkdir()
    two_phase_run(places["above"] / "out")
    done = run(*(word.format(**places) for word in words))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said.format(**places) in done.stderr


def test_nobody_who_answers_is_one_line_and_exit_code_1() -> None:
    done = run(f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nothing answers at" in done.stderr
