"""An upgrade changes nothing that Kubernetes would refuse to change, and finds its old data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helm.charts import (
    ALONE,
    CHART,
    HELMS,
    Document,
    Features,
    documents,
    name_of,
    of_kind,
    parsed,
    template,
)

BEFORE = Path(__file__).parent / "fixtures" / "forcegauge-0.1.0.tgz"
"""The chart as it was published."""

CHANGED = ("--is-upgrade", "--set=image.tag=0.2.0", "--set=api.replicas=2")

RENAMED = {"names"}
"""Features that give everything another name, which makes another release of it."""


def fixed(document: Document) -> Any:
    """What of a manifest may not change while it lives."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment":
            return spec["selector"]
        case "StatefulSet":
            names = ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")
            return [spec.get(name) for name in names]
        case "PersistentVolumeClaim":
            return {name: value for name, value in spec.items() if name != "resources"}
        case "Service":
            return [spec.get("clusterIP"), spec["selector"]]
        case "Secret":
            return [document.get("type"), sorted(document.get("data", {}))]
    return None


def all_fixed(found: tuple[Document, ...]) -> dict[str, Any]:
    return {name_of(each): fixed(each) for each in found if fixed(each) is not None}


@pytest.mark.parametrize("helm", HELMS)
def test_a_new_image_and_more_replicas_change_nothing_that_is_fixed(helm: str) -> None:
    before, after = (all_fixed(documents((), helm, *more)) for more in ((), CHANGED))
    assert before == after
    assert len(before) > 5


@pytest.mark.parametrize("features", ALONE[1:], ids=lambda names: "+".join(names))
def test_a_feature_that_is_turned_on_later_changes_nothing_that_is_fixed(
    features: Features,
) -> None:
    before, after = all_fixed(documents()), all_fixed(documents(features))
    both = set() if RENAMED & set(features) else before.keys() & after.keys()
    assert [name for name in both if before[name] != after[name]] == []


@pytest.mark.parametrize("helm", HELMS)
def test_the_published_chart_can_be_upgraded_to_this_one(helm: str) -> None:
    old, new = (template(helm, "--is-upgrade", chart=chart) for chart in (BEFORE, CHART))
    assert old.code == new.code == 0, old.error + new.error
    before, after = all_fixed(parsed(old.out)), all_fixed(parsed(new.out))
    assert before.items() <= after.items()


def test_a_new_version_of_the_chart_leaves_the_pod_of_redis_alone(tmp_path: Path) -> None:
    newer = tmp_path / "forcegauge"
    shutil.copytree(CHART, newer)
    about = (newer / "Chart.yaml").read_text().replace("0.1.0", "0.2.0")
    (newer / "Chart.yaml").write_text(about)
    made = template("helm4", chart=newer)
    (before,), (after,) = (
        of_kind(found, "StatefulSet") for found in (documents(), parsed(made.out))
    )
    assert before["metadata"]["labels"] != after["metadata"]["labels"]
    assert before["spec"] == after["spec"]
