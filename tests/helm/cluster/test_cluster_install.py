"""`helm install` in a real cluster whose namespace enforces the restricted standard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm.cluster.figures import timed
from tests.helm.cluster.kube import Cluster, ready
from tests.helm.cluster.release import NAME, Release, images
from tests.monitor.chaos import make_inputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["helm4", pytest.param("helm3", marks=pytest.mark.cluster)])
def release(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Release]:
    """The chart without values, but for the names of its images."""
    with cluster.namespace(f"install-{request.param}") as namespace:
        one = Release(cluster, request.param, namespace)
        with timed(f"{request.param} install --wait"):
            one.put("install", images())
        if one.helm == "helm3":
            one.settle()
        yield one


def test_every_component_runs_and_was_never_restarted(release: Release) -> None:
    pods = [pod for name in ("api", "beat", "redis", "worker") for pod in release.component(name)]
    statuses = [status for pod in pods for status in pod["status"]["containerStatuses"]]

    assert len(pods) == 4
    assert all(map(ready, pods))
    assert [status["restartCount"] for status in statuses] == [0] * 4


def test_helms_own_test_passes(release: Release) -> None:
    with timed(f"{release.helm} test"):
        said = release.call("test", NAME)

    assert "Phase:" in said
    assert "Failed" not in said


def test_a_snapshot_asked_for_through_the_service_is_in_the_metrics(
    release: Release, tmp_path: Path
) -> None:
    make_inputs(tmp_path / "inputs")
    inputs = release.copy(tmp_path / "inputs", "tiny")

    with timed(f"{release.helm}, a snapshot"):
        key = release.snapshot("first", inputs)
        found = release.finished("first", key)

    assert found["state"] == "done", found
    metrics = release.insist("GET", "/metrics")
    assert 'forcegauge_snapshot_step{run="first"} 2.0' in metrics
    assert 'forcegauge_snapshots_total{run="first",state="done"} 1.0' in metrics
    assert 'forcegauge_attribution_nats{run="first",observed="chosen"' in metrics
