"""What the operator's page says of the chart is so."""

from __future__ import annotations

import re

import pytest

from tests.helm.charts import ROOT, containers, documents, pod_template

PAGE = (ROOT / "helm" / "operating.md").read_text(encoding="utf-8")

MEBIBYTES = {"Mi": 1, "Gi": 1024}


def requests() -> dict[str, tuple[int, int]]:
    """Millicores and mebibytes that the containers of a release without values request."""
    pods = [pod_template(each) for each in documents() if each["kind"] in KINDS]
    made = [each for pod in pods if pod for each in containers(pod)]
    return {each["name"]: sizes(each["resources"]["requests"]) for each in made}


KINDS = ("Deployment", "StatefulSet")


def sizes(asked: dict[str, str]) -> tuple[int, int]:
    memory = int(asked["memory"][:-2]) * MEBIBYTES[asked["memory"][-2:]]
    return int(asked["cpu"].removesuffix("m")), memory


def test_the_sum_of_the_requests_is_as_told() -> None:
    cpu, memory = map(sum, zip(*requests().values(), strict=True))
    assert f"{cpu} millicores and {memory / 1024:g} GiB of requests" in PAGE


@pytest.mark.parametrize("name", ["api", "worker", "beat", "redis"])
def test_the_requests_of_a_component_are_as_told(name: str) -> None:
    (told,) = re.findall(rf"(?i)^\| {name} \| (\d+)m, (\d+) ([MG]i) \|", PAGE, re.MULTILINE)
    assert requests()[name] == (int(told[0]), int(told[1]) * MEBIBYTES[told[2]])


def test_it_says_that_policies_are_not_enforced_here() -> None:
    assert "Enforcement depends on the cluster's network plugin and was not tested." in PAGE
