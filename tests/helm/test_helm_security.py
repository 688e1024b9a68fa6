"""Every pod of every feature keeps to the restricted Pod Security Standard, and a little more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.charts import ALONE, Document, Features, containers, documents, name_of
from tests.helm.charts import pod_template as template_of
from tests.helm.restricted import violations

each_feature = pytest.mark.parametrize(
    "features", ALONE, ids=lambda names: "+".join(names) or "none"
)


def pods(features: Features) -> Iterator[tuple[str, Document]]:
    """The name of what makes pods, and their template."""
    for document in documents(features):
        template = template_of(document)
        if template is not None:
            yield name_of(document), template


@each_feature
def test_every_pod_is_restricted(features: Features) -> None:
    assert {name: found for name, pod in pods(features) if (found := violations(pod))} == {}


@each_feature
def test_no_container_writes_to_its_own_root(features: Features) -> None:
    for name, pod in pods(features):
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


@each_feature
def test_no_pod_holds_a_token_of_the_cluster(features: Features) -> None:
    for name, pod in pods(features):
        assert pod["spec"]["automountServiceAccountToken"] is False, name
    for document in documents(features):
        if document["kind"] == "ServiceAccount":
            assert document["automountServiceAccountToken"] is False


@each_feature
def test_every_container_says_what_it_needs(features: Features) -> None:
    for name, pod in pods(features):
        for container in containers(pod):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name


@each_feature
def test_no_secret_is_in_a_command_a_plain_variable_or_a_config_map(features: Features) -> None:
    found = documents(features)
    secrets = [
        value
        for each in found
        if each["kind"] == "Secret"
        for value in {**each.get("data", {}), **each.get("stringData", {})}.values()
    ]
    others = str([each for each in found if each["kind"] != "Secret"])
    assert not [value for value in secrets if value and value in others]


DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def test_images_are_pinned_by_their_digests() -> None:
    places = ("image", "redis.image", "workers.gpu.image")
    given = [f"--set={place}.digest={DIGEST}" for place in places]
    made = [template_of(each) for each in documents(("gpu",), "helm4", *given)]
    images = {each["image"].partition("@") for pod in made if pod for each in containers(pod)}
    assert {digest for _, _, digest in images} == {DIGEST}
    assert not [name for name, _, _ in images if ":" in name]


def test_the_users_of_pods_can_be_left_to_the_cluster() -> None:
    names = ("runAsUser", "runAsGroup", "fsGroup")
    given = [f"--set=podDefaults.podSecurityContext.{name}=null" for name in names]
    pods_made = [template_of(each) for each in documents((), "helm4", *given)]
    contexts = [pod["spec"]["securityContext"] for pod in pods_made if pod]
    assert not [name for context in contexts for name in names if name in context]
    assert all(context["runAsNonRoot"] for context in contexts)


GOOD: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}

BAD: dict[str, Any] = {
    "privileged": {"privileged": True},
    "privilege escalation": {"allowPrivilegeEscalation": True},
    "capabilities": {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
    "non-root": {"runAsNonRoot": False},
    "user": {"runAsUser": 0},
    "seccomp": {"seccompProfile": {"type": "Unconfined"}},
}


@pytest.mark.parametrize("name", BAD)
def test_the_check_finds_what_is_not_restricted(name: str) -> None:
    context = {**GOOD, **BAD[name]}
    pod = {"spec": {"containers": [{"name": "a", "securityContext": context}]}}
    assert violations(pod) == [f"a: {name}"]


def test_the_check_finds_what_a_pod_may_not_have() -> None:
    volumes = [{"name": "host", "hostPath": {"path": "/"}}]
    pod = {"spec": {"hostNetwork": True, "volumes": volumes, "containers": []}}
    assert violations(pod) == ["host namespaces", "volume types"]
