"""Every file of values is taken by a real API server that knows the operators' kinds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm.cluster.kube import Cluster
from tests.helm.cluster.release import CHART, NAME, Release
from tests.helm.tools import program

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

FILES = sorted(CHART.glob("ci/*-values.yaml"))
WARNS = {"pod-security.kubernetes.io/warn": "restricted"}


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """No release yet: a namespace, in a cluster with the kinds of KEDA and Prometheus' operator."""
    cluster.operator()
    schemas = os.environ.get("FORCEGAUGE_TEST_SCHEMAS")
    if not schemas:
        pytest.skip("FORCEGAUGE_TEST_SCHEMAS names no folder with KEDA's CRDs")
    for file in sorted(Path(schemas).glob("crd-keda-*.yaml")):
        # too large for the annotation of a client's apply
        cluster.kubectl("apply", "--server-side", "-f", str(file))
    with cluster.namespace("values") as namespace:
        label = [f"{name}={value}" for name, value in WARNS.items()]
        cluster.kubectl("label", "namespace", namespace, *label)
        yield Release(cluster, "helm4", namespace)


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removesuffix("-values"))
def test_a_server_takes_what_the_values_make(release: Release, file: Path, helm: str) -> None:
    one = Release(release.cluster, helm, release.namespace)
    given = (NAME, str(CHART), f"--values={file}", "--dry-run=server", "--output=json")
    made = json.loads(one.call("install", *given))

    apply = ("apply", "--dry-run=server", "-n", one.namespace, "-f", "-")
    done = one.cluster.attempt(program("kubectl"), *apply, text=made["manifest"])
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr
