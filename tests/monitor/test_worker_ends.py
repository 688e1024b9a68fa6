"""A worker that ends by itself when idle, and the file by which a probe sees that beat works."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from celery import Celery
from click.testing import CliRunner

from forcegauge_monitor import tasks
from forcegauge_monitor.broker import make_app
from forcegauge_monitor.chores import add_alive
from forcegauge_monitor.cli import monitor
from forcegauge_monitor.heart import Heart
from forcegauge_monitor.settings import Settings


def _heart() -> Heart:
    return Heart(lambda busy: None, None, 60)


def test_a_heart_at_work_is_not_idle() -> None:
    heart = _heart()
    with heart.on(lambda: True):
        assert heart.idle_seconds == 0


def test_a_heart_counts_from_the_end_of_its_work() -> None:
    heart = _heart()
    time.sleep(0.1)
    before = heart.idle_seconds
    with heart.on(lambda: True):
        pass
    assert before >= 0.1 > heart.idle_seconds


def test_idle_exit_is_refused_with_processes_under_a_parent() -> None:
    given = ["worker", "--pool", "prefork", "--idle-exit", "5"]
    found = CliRunner().invoke(monitor, given, standalone_mode=False)
    assert "solo" in str(found.exception)


def test_a_worker_can_be_ended_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = signal.getsignal(signal.SIGTERM), list[object]()
    monkeypatch.setattr(
        tasks, "run_worker", lambda *_, **__: found.append(signal.getsignal(signal.SIGTERM))
    )
    CliRunner().invoke(monitor, ["worker"], catch_exceptions=False)
    signal.signal(signal.SIGTERM, before)
    assert callable(found[0])


@pytest.fixture
def beat(tmp_path: Path) -> tuple[Celery, Path]:
    app, file = make_app(Settings()), tmp_path / "alive"
    add_alive(app, file)
    return app, file


def test_beats_file_is_there_from_the_start(beat: tuple[Celery, Path]) -> None:
    assert beat[1].exists()


def test_beat_touches_its_file_between_chores(beat: tuple[Celery, Path]) -> None:
    app, file = beat
    file.unlink()
    app.tasks[app.conf.beat_schedule["alive"]["task"]].run()
    assert file.exists()
