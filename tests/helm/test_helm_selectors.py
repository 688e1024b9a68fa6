"""Every selector selects exactly the pods that it should, in every feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.charts import (
    ALONE,
    Document,
    Features,
    documents,
    name_of,
    of_kind,
    pod_template,
)
from tests.helm.flows import selects

COMPONENT = "app.kubernetes.io/component"

each_feature = pytest.mark.parametrize(
    "features", ALONE, ids=lambda names: "+".join(names) or "none"
)


def pods(features: Features) -> dict[str, Document]:
    """The templates of a release's pods, by what makes them."""
    made = {name_of(each): pod_template(each) for each in documents(features)}
    return {name: pod for name, pod in made.items() if pod is not None}


def selectors(features: Features) -> Iterator[tuple[Document, dict[str, Any]]]:
    """What selects pods of the release, and its selector."""
    for each in documents(features):
        spec = each.get("spec", {})
        match each["kind"]:
            case "Deployment" | "StatefulSet" | "PodDisruptionBudget":
                yield each, spec["selector"]
            case "Service":
                yield each, {"matchLabels": spec["selector"]}
            case "NetworkPolicy":
                yield each, spec["podSelector"]


@each_feature
def test_each_selects_the_pods_of_its_own_component_and_no_other(features: Features) -> None:
    found = {name_of(each): selected(selector, features) for each, selector in selectors(features)}
    assert found == {name_of(each): meant(each, features) for each, _ in selectors(features)}


def selected(selector: dict[str, Any], features: Features) -> set[str]:
    """Names of what makes the pods that a selector selects."""
    return {
        name
        for name, pod in pods(features).items()
        if selects(selector, pod["metadata"].get("labels", {}))
    }


def meant(document: Document, features: Features) -> set[str]:
    """Names of what makes the pods of the component that a manifest belongs to."""
    component = document["metadata"]["labels"][COMPONENT]
    if document["kind"] in ("Deployment", "StatefulSet"):
        return {name_of(document)}
    return {
        name
        for name, pod in pods(features).items()
        if pod["metadata"]["labels"][COMPONENT] == component
    }


@each_feature
def test_a_pod_spreads_and_keeps_apart_from_its_own_kind(features: Features) -> None:
    for name, pod in pods(features).items():
        labels = pod["metadata"]["labels"]
        for each in pod["spec"].get("topologySpreadConstraints", []):
            assert selects(each["labelSelector"], labels), name
            assert selected(each["labelSelector"], features) == {name}


@each_feature
def test_every_service_leads_to_ports_that_its_pods_open(features: Features) -> None:
    for service in of_kind(documents(features), "Service"):
        for name in selected({"matchLabels": service["spec"]["selector"]}, features):
            opened = {
                port["name"]
                for container in pods(features)[name]["spec"]["containers"]
                for port in container.get("ports", [])
            }
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= opened


def monitor(kind: str) -> Document:
    """The object of the feature `monitoring` of a kind."""
    (found,) = of_kind(documents(("monitoring",)), kind)
    return found


def test_the_service_monitor_selects_the_service_of_the_api_alone() -> None:
    spec = monitor("ServiceMonitor")["spec"]
    services = of_kind(documents(("monitoring",)), "Service")
    found = [each for each in services if selects(spec["selector"], each["metadata"]["labels"])]
    assert [name_of(each) for each in found] == ["Service/forcegauge"]
    names = {port["name"] for port in found[0]["spec"]["ports"]}
    assert {each["port"] for each in spec["endpoints"]} <= names


def test_the_pod_monitor_selects_no_pod_of_ours() -> None:
    assert selected(monitor("PodMonitor")["spec"]["selector"], ("monitoring",)) == set()
