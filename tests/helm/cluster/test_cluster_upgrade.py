"""From the chart's previous version to this one, to other values and another image, and back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helm.cluster.figures import measured, timed
from tests.helm.cluster.images import NEW, OLD
from tests.helm.cluster.kube import Cluster, Object
from tests.helm.cluster.release import NAME, Release, images
from tests.monitor.chaos import make_inputs

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

FIXTURES = Path(__file__).parents[1] / "fixtures"
"""Holds the chart's previous version, packaged."""
TWO = {"api": {"replicas": 2}}
CHANGED = {**images(NEW), **TWO, "config": {"samples": 128, "staleSeconds": 90}}


@dataclass
class Asked:
    """Requests that were made one after the other, and those that failed."""

    count: int = 0
    failed: list[tuple[str, int]] = field(default_factory=list)
    slowest: float = 0.0


@dataclass(frozen=True)
class Change:
    """A release before and after something was done to it, and the requests meanwhile."""

    before: Object
    after: Object
    asked: Asked


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart's previous version with two API pods."""
    [previous] = FIXTURES.glob("forcegauge-*.tgz")
    cluster.ctr("images", "tag", "--force", OLD, NEW)
    with cluster.namespace("upgrade") as namespace:
        one = Release(cluster, "helm4", namespace)
        one.put("install", {**images(), **TWO}, chart=previous)
        yield one


@pytest.fixture(scope="module")
def changes(release: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Change]:
    """What was done to the release, in this order."""
    folder = tmp_path_factory.mktemp("upgrade") / "inputs"
    make_inputs(folder)
    key = release.snapshot("kept", release.copy(folder, "tiny"))
    assert release.finished("kept", key)["state"] == "done"
    return {
        "upgrade to this chart": _change(
            release, lambda: release.put("upgrade", {**images(), **TWO})
        ),
        "upgrade to other values and image": _change(
            release, lambda: release.put("upgrade", CHANGED)
        ),
        "rollback": _change(
            release, lambda: release.call("rollback", NAME, "2", "--wait", "--timeout=5m")
        ),
    }


CHANGES = ("upgrade to this chart", "upgrade to other values and image", "rollback")


@pytest.mark.parametrize("name", CHANGES)
def test_data_secrets_and_selectors_stay(changes: dict[str, Change], name: str) -> None:
    change = changes[name]

    assert change.after["kept"] == change.before["kept"]


@pytest.mark.parametrize("name", CHANGES)
def test_no_request_fails_meanwhile(changes: dict[str, Change], name: str) -> None:
    asked = changes[name].asked

    measured(f"{name}: requests", asked.count)
    measured(f"{name}: slowest request, ms", 1000 * asked.slowest)
    assert asked.count
    assert asked.failed == []


def test_the_pods_run_what_was_asked_for(changes: dict[str, Change]) -> None:
    run = [changes[name].after["images"] for name in CHANGES]

    assert run == [{OLD}, {NEW}, {OLD}]


def test_uninstall_leaves_the_claims_alone(release: Release, changes: dict[str, Change]) -> None:
    release.call("uninstall", NAME, "--wait")

    kinds = "deployments,statefulsets,services,secrets,configmaps,serviceaccounts,pods,jobs"
    left = release.cluster.get(f"{kinds},persistentvolumeclaims", "-n", release.namespace)
    given = ("kube-root-ca.crt", "default")
    names = {
        (each["kind"], each["metadata"]["name"])
        for each in left
        if each["metadata"]["name"] not in given and "deletionTimestamp" not in each["metadata"]
    }
    claim = "PersistentVolumeClaim"
    assert names == {(claim, f"{NAME}-storage"), (claim, f"{NAME}-redis")}


def _change(release: Release, act: Callable[[], str]) -> Change:
    before = _facts(release)
    with _asking(release) as asked:
        act()
    return Change(before, _facts(release), asked)


def _facts(release: Release) -> Object:
    """What has to stay as it is, and the images that run."""

    def own(kind: str) -> list[Object]:
        label = f"app.kubernetes.io/instance={NAME}"
        return list(release.cluster.get(kind, "-n", release.namespace, "-l", label))

    pods = [pod for name in ("api", "beat", "worker") for pod in release.component(name)]
    _, snapshots = release.ask("GET", "/api/v1/runs/kept/snapshots")
    redis = release.component("redis")[0]["metadata"]["uid"]
    kept: dict[str, Any] = {
        "secrets": {each["metadata"]["name"]: each["data"] for each in own("secrets")},
        "claims": {each["metadata"]["name"]: each["metadata"]["uid"] for each in own("pvc")},
        "selectors": {
            (each["kind"], each["metadata"]["name"]): each["spec"]["selector"]
            for each in own("deployments,statefulsets,services")
        },
        "snapshots": snapshots,
        # its restart would be an outage of the API
        "redis": redis,
    }
    return {"kept": kept, "images": {each["spec"]["containers"][0]["image"] for each in pods}}


@contextmanager
def _asking(release: Release) -> Iterator[Asked]:
    """One request after the other through the Service, each on a connection of its own."""
    asked, over = Asked(), threading.Event()
    about = {"run": "live", "record_id": "live", "model": "tiny"}
    release.insist("POST", "/api/v1/runs", about)
    turns = (
        ("GET", "/healthz", None),
        ("GET", "/api/v1/runs", None),
        ("POST", "/api/v1/runs/live/heartbeat", {"record_id": "live", "step": 1}),
    )

    def ask() -> None:
        while not over.wait(0.05):
            for turn in turns:
                began = time.monotonic()
                status, _ = release.ask(*turn)
                asked.slowest = max(asked.slowest, time.monotonic() - began)
                asked.count += 1
                if not 200 <= status < 300:
                    asked.failed.append((turn[1], status))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        with timed("an upgrade or a rollback"):
            yield asked
    finally:
        over.set()
        asker.join()
