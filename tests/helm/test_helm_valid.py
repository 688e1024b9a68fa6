"""Kubernetes takes every manifest that the chart renders, from the oldest version on."""

from __future__ import annotations

import json

import pytest

from tests.helm.charts import (
    ALONE,
    CHART,
    CRDS,
    RELEASE,
    Document,
    Features,
    call,
    documents,
    files,
    name_of,
    of_kind,
    parsed,
    possible,
)
from tests.helm.schemas import VERSIONS, closed, problems


@pytest.fixture(scope="module")
def distinct() -> list[Document]:
    """Every manifest of every feature and pair, once."""
    found = {id(each): each for features in possible() for each in documents(features)}
    return list({json.dumps(each, sort_keys=True): each for each in found.values()}.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str, distinct: list[Document]) -> None:
    assert [fault for each in distinct for fault in problems(each, version)] == []


def test_no_two_manifests_of_a_release_have_one_name() -> None:
    for features in possible():
        names = [name_of(each) for each in documents(features)]
        assert len(names) == len(set(names)), features


@pytest.mark.parametrize("features", ALONE, ids=lambda names: "+".join(names) or "none")
def test_where_the_cluster_has_no_crds_nothing_needs_one(features: Features) -> None:
    answer = call("helm4", "template", RELEASE, str(CHART), *files(features))
    assert answer.code == 0, answer.error
    groups = {crd.partition("/")[0] for crd in CRDS}
    found = parsed(answer.out)
    assert not [each for each in found if each["apiVersion"].partition("/")[0] in groups]
    assert [each for each in of_kind(found, "Deployment") if "-worker-" in name_of(each)]


def test_nobody_but_keda_says_how_many_workers_run_where_it_scales() -> None:
    found = {name_of(each): each for each in documents(("keda",))}
    scaled = found["ScaledObject/forcegauge-worker-cpu"]["spec"]["scaleTargetRef"]["name"]
    assert "replicas" not in found[f"Deployment/{scaled}"]["spec"]
    assert not [name for name in found if name.startswith("HorizontalPodAutoscaler")]


def test_an_unknown_field_is_a_problem() -> None:
    spec = {"replicas": 1, "replica": 2, "selector": {}, "template": {"spec": {"containers": []}}}
    made = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}
    assert "'replica' was unexpected" in problems(made, VERSIONS[-1])[0]


def test_an_unknown_field_of_a_custom_resource_is_a_problem() -> None:
    spec = {"selector": {}, "endpoints": [{"port": "http", "prot": "http"}]}
    made = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor"}
    found = problems({**made, "metadata": {"name": "a"}, "spec": spec}, VERSIONS[0])
    assert len(found) == 1
    assert "'prot' was unexpected" in found[0]


def test_a_closed_schema_leaves_open_what_says_so() -> None:
    told = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    assert "additionalProperties" not in closed(told)
