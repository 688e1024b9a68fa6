"""What an autoscaler of workers builds on: the names of the lists, and a worker that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from forcegauge_monitor.broker import BEGIN, END, PIECE, PREFIX, make_app
from forcegauge_monitor.connection import connect
from forcegauge_monitor.settings import Settings
from tests.servers import redis_server

pytestmark = pytest.mark.slow


def test_what_waits_and_what_is_taken_has_names_by_queue_and_priority(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        app = make_app(Settings(redis_url=url))
        for priority in (BEGIN, PIECE, END):
            app.send_task("forcegauge.start", ("run", "key"), queue="gpu", priority=priority)
        client = connect(url)
        waiting = lengths(client, "llen", "gpu*")
        with app.connection_for_read() as connection:
            assert connection.default_channel.basic_get("gpu")
            taken = lengths(client, "hlen", "unacked")
        client.close()
        app.close()
    assert waiting == {"gpu": 1, "gpu:3": 1, "gpu:6": 1}
    assert taken == {"unacked": 1}


def lengths(client: Redis, command: str, pattern: str) -> dict[str, int]:
    """Celery's keys of a pattern without their prefix, and how much is in each."""
    names = [str(each) for each in client.keys(f"{PREFIX}{pattern}")]
    return {name.removeprefix(PREFIX): getattr(client, command)(name) for name in names}


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
