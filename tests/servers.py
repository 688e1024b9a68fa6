"""Real servers for tests: started on a free loopback port with their own folder, always stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus"}
"""The Debian package that brings a program."""

START_SECONDS = 30.0


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
def server(command: Sequence[str], folder: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server until the block ends; its output goes to ``folder/server.log``."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: process.poll() is not None or ready())
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended: {(folder / 'server.log').read_text()[-2000:]}")
            yield
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


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, promql: str) -> list[dict[str, object]]:
        """Series of an instant query: rows of ``metric`` (labels) and ``value`` (time, text)."""
        status, text = fetch(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
        if status != 200:
            pytest.fail(f"{promql}: {status} {text}")
        found: list[dict[str, object]] = json.loads(text)["data"]["result"]
        return found


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """A real Prometheus, its data in ``folder``, that scrapes ``host:port`` every second."""
    program = require("prometheus")
    scrape = {"job_name": "forcegauge", "static_configs": [{"targets": list(targets)}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
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
