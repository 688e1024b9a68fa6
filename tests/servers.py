"""Real servers for tests: started on a free loopback port with their own folder, always stopped."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "redis-server": "redis-server",
    "redis-sentinel": "redis-sentinel",
}
"""The Debian package that brings a program."""

START_SECONDS = 120.0
"""Of patience: on a busy machine a server takes half a minute to start."""


def require(program: str) -> str:
    """Path of a program; without it the test is skipped, or fails where tools are promised."""
    found = shutil.which(program)
    if found is not None:
        return found
    reason = f"{program} is missing: apt-get install {PACKAGES.get(program, program)}"
    if os.environ.get("FORCEGAUGE_TEST_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


T = TypeVar("T")


def wait_for(look: Callable[[], T], seconds: float = START_SECONDS) -> T:
    """The first true answer; fails the test when none comes in time."""
    end = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > end:
            pytest.fail(f"nothing came within {seconds} seconds")
        time.sleep(0.1)
    return answer


@contextmanager
def server(command: Sequence[str], folder: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """Run a server until the block ends, its process id; what it says goes to ``server.log``."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: process.poll() is not None or ready())
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended: {(folder / 'server.log').read_text()[-2000:]}")
            yield process.pid
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


def fetch(url: str) -> tuple[int, str]:
    """Status and text of a page; status 0 while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return int(page.status), page.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


VERSIONS = ("2.42", "3.15")
"""The oldest and the newest Prometheus that is supported: Debian's, and one of the tools."""


def prometheus_program(version: str = "2.42") -> str:
    """Path of Prometheus' program; without it the test is skipped, or fails as in `require`."""
    return require("prometheus") if version == VERSIONS[0] else _unpacked()


@cache
def _unpacked() -> str:
    """Prometheus 3.15 out of its archive, in a folder that is gone with the process."""
    tools = os.environ.get("FORCEGAUGE_TEST_TOOLS")
    if not tools:
        pytest.skip("Prometheus 3.15 is missing: FORCEGAUGE_TEST_TOOLS names no folder with it")
    folder = tempfile.mkdtemp(prefix="prometheus-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(Path(tools) / "prometheus.tar.xz") as archive:
        member = next(each for each in archive if Path(each.name).name == "prometheus")
        archive.extract(member, folder, filter="data")
    return str(Path(folder) / member.name)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def rule_groups(self) -> list[dict[str, Any]]:
        """Its groups of rules, with their health and what each evaluation took."""
        status, text = fetch(f"{self.url}/api/v1/rules")
        if status != 200:
            pytest.fail(f"rules: {status} {text}")
        groups: list[dict[str, Any]] = json.loads(text)["data"]["groups"]
        return groups

    def query(self, promql: str) -> list[dict[str, object]]:
        """Series of an instant query: rows of ``metric`` (labels) and ``value`` (time, text)."""
        status, text = fetch(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
        if status != 200:
            pytest.fail(f"{promql}: {status} {text}")
        found: list[dict[str, object]] = json.loads(text)["data"]["result"]
        return found


@contextmanager
def prometheus(
    folder: Path,
    targets: Sequence[str] = (),
    *,
    discovery: str | None = None,
    rules: Sequence[Path] = (),
    version: str = "2.42",
) -> Iterator[Prometheus]:
    """A real Prometheus, its data in ``folder``, that scrapes ``host:port`` every second, and what
    it finds at the URL ``discovery``, asked every second too; ``rules`` are files that it evaluates
    every second, ``version`` is one of `VERSIONS`."""
    program = prometheus_program(version)
    scrape: dict[str, object] = {"job_name": "forcegauge"}
    scrape["static_configs"] = [{"targets": list(targets)}]
    if discovery is not None:
        scrape["http_sd_configs"] = [{"url": discovery, "refresh_interval": "1s"}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [scrape],
    }
    # JSON is YAML
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with server(command, folder, lambda: fetch(f"http://{address}/-/ready")[0] == 200):
        yield Prometheus(f"http://{address}")


@contextmanager
def redis_server(folder: Path, *arguments: str, port: int = 0) -> Iterator[str]:
    """A real Redis on a unix socket, and on a port where one is given; its URL."""
    place = folder / "redis.sock"
    command = [
        require("redis-server"),
        *("--bind", "127.0.0.1", "--port", str(port)),
        *("--unixsocket", str(place), "--dir", str(folder), "--save", "", *arguments),
    ]
    with server(command, folder, lambda: _answers(place)):
        yield f"unix://{place}?db=0"


def _answers(place: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place))
            client.sendall(b"PING\r\n")
            # an error such as a missing password is an answer too
            return client.recv(64)[:8] not in (b"", b"-LOADING")
    except OSError:
        return False


@contextmanager
def served(app: Callable[..., Any]) -> Iterator[str]:
    """An ASGI application behind a real uvicorn on a free port, in a thread; its URL."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=serving.run, args=([listening],))
    thread.start()
    try:
        wait_for(lambda: serving.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        serving.should_exit = True
        thread.join(timeout=START_SECONDS)
        listening.close()
