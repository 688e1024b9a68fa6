"""What an autoscaler of workers builds on: the names of the lists, and a worker that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forcegauge_monitor.broker import BEGIN, END, PIECE, make_app
from forcegauge_monitor.connection import connect
from forcegauge_monitor.settings import Settings
from tests.servers import redis_server

pytestmark = pytest.mark.slow


def test_what_waits_is_in_lists_named_by_queue_and_priority(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        app = make_app(Settings(redis_url=url))
        for priority in (BEGIN, PIECE, END):
            app.send_task("forcegauge.start", ("run", "key"), queue="gpu", priority=priority)
        app.close()
        client = connect(url)
        kinds = {name: client.type(name) for name in client.keys("forcegauge:celery:gpu*")}
        client.close()
    assert kinds == dict.fromkeys(
        ("forcegauge:celery:gpu", "forcegauge:celery:gpu:3", "forcegauge:celery:gpu:6"), "list"
    )


def test_a_worker_without_work_ends_by_itself_and_without_an_error(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("forcegauge")),
                "monitor",
                "worker",
                "--idle-exit=1",
            ],
            env={"FORCEGAUGE_MONITOR_REDIS_URL": url, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Warm shutdown" in done.stderr + done.stdout
