"""`forcegauge monitor up`: one command, one folder, and no process that outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from forcegauge.errors import InputError, RunError
from forcegauge_monitor import embedded
from forcegauge_monitor.cli import monitor
from forcegauge_monitor.embedded import Family, forcegauge, owned, valkey
from forcegauge_monitor.records import Run
from forcegauge_monitor.settings import load_settings
from forcegauge_monitor.store import open_store
from tests.servers import fetch, free_port, wait_for


@contextmanager
def up(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A monitor without workers, ready to answer; killed at the end if it still runs."""
    more = ("--data", str(folder), "--port", str(port), "--workers", "0")
    process = subprocess.Popen(forcegauge("monitor", "up", *more), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        yield process
    finally:
        process.kill()
        process.wait()


def running(folder: Path) -> list[str]:
    """Commands of live processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in line and entry.name != str(os.getpid()):
                found.append(line)
    return found


def test_ctrl_c_ends_everything_and_keeps_the_data(tmp_path: Path) -> None:
    port = free_port()
    for start in range(2):
        with up(tmp_path / "m", port) as process:
            store = open_store(load_settings(tmp_path / "m" / "settings.json"))
            known = store.run("kept")
            store.register(Run("kept", "first"))
            store.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0
        assert (known is not None) == (start == 1)
        assert not running(tmp_path)


def test_killed_with_9_it_leaves_no_process_behind(tmp_path: Path) -> None:
    with up(tmp_path / "m", free_port()) as process:
        assert len(running(tmp_path)) >= 4
        process.kill()
        wait_for(lambda: not running(tmp_path))


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path / "m", port):
        [served] = [line for line in running(tmp_path) if " serve " in line]
        pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]
        for pid in pids:
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line == served:
                    os.kill(pid, signal.SIGKILL)
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/readyz")[0] == 0)
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/readyz")[0] == 200)


def test_one_folder_has_one_monitor(tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(InputError, match="another monitor runs"), owned(tmp_path):
        pass


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path / "m", port):
        arguments = ["up", "--data", str(tmp_path / "other"), "--port", str(port)]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is taken"):
            CliRunner().invoke(monitor, arguments, catch_exceptions=False, standalone_mode=False)


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too long for a unix socket"):
        valkey(tmp_path / ("x" * 100))


def test_what_ends_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forcegauge_monitor.embedded.time.sleep", lambda seconds: None)
    family = Family(tmp_path, os.environ)
    try:
        family.add("part", ["/bin/sh", "-c", "echo no such thing; exit 1"])
        for _ in range(embedded.RESTARTS - 1):
            _wait_for_end(family)
            assert family.tend() == ["part"]
        _wait_for_end(family)
        with pytest.raises(RunError, match="ends again and again, at last with: no such thing"):
            family.tend()
    finally:
        family.close()


def _wait_for_end(family: Family) -> None:
    process = family.children[0].process
    assert process is not None
    process.wait()
