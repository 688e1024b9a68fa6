"""Pods are deleted while snapshots are made, and nothing is lost."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.benchmarks.monitor_scaling import make_inputs
from tests.helm.cluster.figures import measured, timed
from tests.helm.cluster.kube import Cluster, eventually
from tests.helm.cluster.release import NAME, Release, images
from tests.monitor.chaos import differences
from tests.monitor.chaos import make_inputs as tiny_inputs

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROUNDS, PIECES, PIECE_SECONDS = 5, 8, 5.0
GRACE = 60
VALUES = {
    **images(),
    "config": {"leaseSeconds": 5, "kernelProbes": 4},
    "workerDefaults": {"terminationGracePeriodSeconds": GRACE},
    "workers": {"cpu": {"replicas": 2, "extraEnv": {"OMP_NUM_THREADS": "1"}}},
}


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart with two workers that give a snapshot up to others after five seconds."""
    with cluster.namespace("chaos") as namespace:
        one = Release(cluster, "helm4", namespace)
        one.put("install", VALUES)
        yield one


@pytest.fixture(scope="module")
def inputs(release: Release, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose snapshot has long pieces, on the storage."""
    folder = tmp_path_factory.mktemp("chaos") / "inputs"
    make_inputs(folder, layers=12)
    (folder / "checkpoint-1").rename(folder / "checkpoint-2")
    return release.copy(folder, "long")


@pytest.fixture(scope="module")
def quick(release: Release, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose snapshot takes seconds."""
    folder = tmp_path_factory.mktemp("quick") / "inputs"
    tiny_inputs(folder)
    return release.copy(folder, "quick")


@pytest.fixture(scope="module")
def storage(cluster: Cluster, release: Release) -> Path:
    """The storage as the node sees it."""
    return cluster.volume(release.namespace, f"{NAME}-storage")


@pytest.fixture(scope="module")
def undisturbed(release: Release, inputs: str, storage: Path) -> Path:
    """The folder of a snapshot during which nobody was killed."""
    with timed("a snapshot of long pieces, undisturbed"):
        key = release.snapshot("undisturbed", inputs)
        assert release.finished("undisturbed", key)["state"] == "done"
    return storage / "undisturbed" / key


def test_the_pieces_are_long_enough_for_pods_to_die_in_them(
    release: Release, undisturbed: Path
) -> None:
    pods = [pod["metadata"]["name"] for pod in release.component("worker")]
    logs = "".join(release.kubectl("logs", name) for name in pods)
    took = sorted(float(each) for each in re.findall(r"undisturbed/\S+ \S+ took ([\d.]+) s", logs))

    measured("median of the snapshot's pieces, seconds", took[len(took) // 2])
    assert len([each for each in took if each >= PIECE_SECONDS]) >= PIECES, took


@pytest.mark.parametrize("number", range(ROUNDS))
def test_deleted_pods_lose_nothing(
    release: Release, inputs: str, quick: str, storage: Path, undisturbed: Path, number: int
) -> None:
    run = f"round-{number}"
    draw = random.Random(number)
    with timed(f"chaos, round {number + 1}"), _watched(storage / run) as begun_again:
        key = release.snapshot(run, inputs)
        killer = threading.Thread(target=_kill, args=(release, storage / run, draw))
        killer.start()
        others = {f"{run}-{n}": release.snapshot(f"{run}-{n}", quick) for n in _while(killer)}
        found = release.finished(run, key)
        also = [release.finished(name, one)["state"] for name, one in others.items()]

    measured(f"chaos, round {number + 1}, pieces begun again", len(begun_again))
    assert begun_again
    assert found["state"] == "done", found
    assert also == ["done"] * len(others)
    assert not differences(storage / run / key, undisturbed, found["metrics"], run)
    assert not (storage / run / key / "work").exists()


def _while(thread: threading.Thread) -> Iterator[int]:
    """Numbers, two seconds apart, while a thread runs."""
    for number in itertools.count():
        thread.join(2.0)
        if not thread.is_alive():
            return
        yield number


def test_a_worker_that_is_to_end_gives_its_piece_back_in_time(
    release: Release, inputs: str, storage: Path, undisturbed: Path
) -> None:
    key = release.snapshot("ended", inputs)
    eventually(lambda: _all_busy(release, storage / "ended"), "all workers are in a piece")
    began = time.monotonic()
    release.kubectl("delete", "pod", release.worker())
    took = time.monotonic() - began
    # only a process that was killed leaves its mark: then somebody begins the piece a second time
    counted = {times for _, times in _marks(storage / "ended").values()}
    found = release.finished("ended", key)

    measured("SIGTERM in a long piece, until the worker was gone, seconds", took)
    assert took < GRACE
    assert counted <= {1}
    assert found["state"] == "done", found
    assert not differences(storage / "ended" / key, undisturbed, found["metrics"], "ended")


def _kill(release: Release, folder: Path, draw: random.Random) -> None:
    """A worker in the middle of a piece, then the others in some order, all without a warning."""
    eventually(lambda: _all_busy(release, folder), "all workers are in a piece")
    _delete(release, release.worker())
    for component in draw.sample(["api", "beat", "redis"], 3):
        time.sleep(draw.uniform(0.5, 3.0))
        for pod in release.component(component):
            _delete(release, pod["metadata"]["name"])


def _delete(release: Release, pod: str) -> None:
    release.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")


def _all_busy(release: Release, folder: Path) -> bool:
    """Whether every worker is in a piece since a second: their marks are on the storage."""
    since = time.time() - 1.0
    return sum(began < since for began, _ in _marks(folder).values()) >= len(
        release.component("worker")
    )


def _marks(folder: Path) -> dict[Path, tuple[float, int]]:
    """When each piece that is being done was begun, and how often."""
    found = {}
    for path in folder.glob("*/work/*.tries"):
        # it may be gone meanwhile
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime, path.stat().st_size
    return found


@contextmanager
def _watched(folder: Path) -> Iterator[set[str]]:
    """Names of the pieces that were left unfinished while the block ran: their worker was killed in
    them, or gave them back. The snapshot is done only once another has done them."""
    found, over = set[str](), threading.Event()

    def look() -> None:
        before: set[Path] = set()
        while not over.wait(0.2):
            marks = _marks(folder)
            found.update(path.stem for path, (_, times) in marks.items() if times > 1)
            ended = {path for path in before - marks.keys() if path.parent.exists()}
            found.update(p.stem for p in ended if not p.with_suffix(".safetensors").exists())
            before = marks.keys() | set()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
