"""The chart, its features, and what both Helms render of them; each is rendered once."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.helm.tools import program

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "forcegauge"
HELMS = ("helm3", "helm4")
RELEASE, NAMESPACE = "forcegauge", "monitoring"

FEATURES = tuple(sorted(path.stem.removesuffix("-values") for path in CHART.glob("ci/*.yaml")))
"""Each has a file of values, ``ci/FEATURE-values.yaml``."""

CRDS = (
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "monitoring.coreos.com/v1alpha1/ScrapeConfig",
    "keda.sh/v1alpha1/ScaledObject",
    "keda.sh/v1alpha1/ScaledJob",
)
"""What the cluster of the tests has beside Kubernetes itself."""

Features = tuple[str, ...]

ALONE: tuple[Features, ...] = ((), *((name,) for name in FEATURES))
PAIRS: tuple[Features, ...] = tuple(itertools.combinations(FEATURES, 2))

ALONE_ONLY = "storage.persistence.enabled=false allows one worker"

CONTRADICTIONS = {
    frozenset({"external-redis", "keda"}): "needs workers.cpu.keda.triggers with externalRedis",
    frozenset(
        {"external-redis", "keda-jobs"}
    ): "needs workers.gpu.keda.triggers with externalRedis",
    frozenset({"no-persistence", "gpu"}): ALONE_ONLY,
    frozenset({"no-persistence", "keda"}): ALONE_ONLY,
    frozenset({"no-persistence", "keda-jobs"}): ALONE_ONLY,
    frozenset({"no-persistence", "pools"}): ALONE_ONLY,
}
"""Pairs of features that exclude each other, and what the chart says about them."""


@dataclass(frozen=True)
class Answer:
    """What a call of Helm came to."""

    code: int
    out: str
    error: str


def call(helm: str, *arguments: str) -> Answer:
    """Run one of the two Helms."""
    done = subprocess.run([program(helm), *arguments], capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def template(helm: str, *more: str, chart: Path = CHART) -> Answer:
    """The chart rendered where all CRDs are there; ``more`` are flags of `helm template`."""
    groups = sorted({crd.rpartition("/")[0] for crd in CRDS})
    known = [f"--api-versions={name}" for name in (*groups, *CRDS)]
    where = (RELEASE, str(chart), "--namespace", NAMESPACE)
    return call(helm, "template", *where, *known, *more)


@cache
def rendered(helm: str, features: Features = (), *more: str) -> Answer:
    """The chart with the values of some features."""
    return template(helm, *files(features), *more)


def linted(helm: str, features: Features) -> Answer:
    """What `helm lint --strict` says to the values of some features."""
    return call(helm, "lint", "--strict", str(CHART), *files(features))


def files(features: Features) -> list[str]:
    """The flags of their values."""
    return [f"--values={CHART / 'ci' / f'{name}-values.yaml'}" for name in features]


def render_all() -> None:
    """Render every feature and every pair on both Helms, two at a time, for the tests to come."""
    wanted = list(itertools.product(HELMS, (*ALONE, *PAIRS)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: rendered(*each), wanted))


def possible() -> Iterator[Features]:
    """No feature, each feature and each pair that does not exclude each other."""
    yield from ALONE
    yield from (pair for pair in PAIRS if frozenset(pair) not in CONTRADICTIONS)


def documents(features: Features = (), helm: str = "helm4", *more: str) -> tuple[Document, ...]:
    """The manifests of some features; whoever changes them spoils them for the others."""
    answer = rendered(helm, features, *more)
    assert answer.code == 0, answer.error
    return parsed(answer.out)


@cache
def parsed(text: str) -> tuple[Document, ...]:
    """The manifests of a rendered text."""
    found = (_document(part) for part in re.split(r"^---$", text, flags=re.MULTILINE))
    return tuple(each for each in found if each)


class _Strict(yaml.CSafeLoader):
    """YAML in which no key stands twice: of such a pair Kubernetes would take one, or refuse it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = {name for name in names if names.count(name) > 1}
        assert not twice, f"{twice} at {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


@cache
def _document(text: str) -> Document:
    found: Document = yaml.load(text, Loader=_Strict) or {}
    return found


def with_values(helm: str, values: Mapping[str, Any], folder: Path) -> Answer:
    """The chart with values that no file of it holds."""
    file = folder / "values.yaml"
    file.write_text(yaml.dump(values, Dumper=yaml.CSafeDumper))
    return template(helm, f"--values={file}")


def name_of(document: Document) -> str:
    """Its kind and name."""
    return f"{document['kind']}/{document['metadata']['name']}"


def of_kind(found: tuple[Document, ...], *kinds: str) -> list[Document]:
    """Those of some kinds."""
    return [each for each in found if each["kind"] in kinds]


def pod_template(document: Document) -> Document | None:
    """The template of the pods that it makes, or the pod itself; None for what makes none."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Pod":
            return document
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicaSet":
            return dict(spec["template"])
        case "CronJob":
            return dict(spec["jobTemplate"]["spec"]["template"])
        case "ScaledJob":
            return dict(spec["jobTargetRef"]["template"])
    return None


def containers(pod: Document) -> list[Document]:
    """All containers of a template, those that start before the others too."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]
