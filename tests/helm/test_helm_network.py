"""The NetworkPolicies allow exactly the flows that the components need, as they are specified.

Nothing enforces them here: whether a cluster does is its network plugin's matter.
"""

from __future__ import annotations

import itertools

import pytest

from tests.helm.charts import NAMESPACE, Document, Features, containers, documents, of_kind
from tests.helm.charts import pod_template as template_of
from tests.helm.flows import Peer, allowed

NAME = "kubernetes.io/metadata.name"
HOME = {NAME: NAMESPACE}
COMPONENT = "app.kubernetes.io/component"

OTHERS = {
    "trainer": Peer({"forcegauge/agent": "true"}, {NAME: "a", "forcegauge/trainers": "true"}),
    "prometheus": Peer({"app": "prometheus"}, HOME),
    "stranger": Peer({"app": "web"}, {NAME: "b"}),
    "keda": Peer({"app": "keda-operator"}, {NAME: "keda"}),
    "outside": Peer(address="203.0.113.9"),
    "dns": Peer({"k8s-app": "kube-dns"}, {NAME: "kube-system"}),
}

API, REDIS, HTTPS, HTTP = 8790, 6379, 443, 80

ALWAYS = {
    ("api", "redis", REDIS),
    ("worker", "redis", REDIS),
    ("beat", "redis", REDIS),
    ("test", "api", API),
    ("trainer", "api", API),
    ("prometheus", "api", API),
}

NEEDED: dict[Features, set[tuple[str, str, int]]] = {
    ("network-policies",): ALWAYS,
    ("bucket", "network-policies"): ALWAYS
    | {("worker", "outside", HTTPS), ("beat", "outside", HTTPS)},
    ("grafana", "network-policies"): ALWAYS
    | {("beat", "outside", HTTP), ("grafana", "outside", HTTP)},
    ("keda", "network-policies"): ALWAYS | {("keda", "redis", REDIS)},
    ("keda-jobs", "network-policies"): ALWAYS | {("keda", "redis", REDIS)},
    ("external-redis", "network-policies"): {each for each in ALWAYS if each[1] != "redis"}
    | {(name, "outside", REDIS) for name in ("api", "worker", "beat")},
}
"""Source, target and port of the flows that are allowed, beside names being looked up."""


def peers(features: Features) -> dict[str, Peer]:
    """The pods of a release by their components, and what else may be there."""
    found = dict(OTHERS)
    for document in documents(features):
        pod = template_of(document)
        if pod is not None:
            ports = [port for each in containers(pod) for port in each.get("ports", [])]
            named = {port["name"]: port["containerPort"] for port in ports}
            labels = pod["metadata"]["labels"]
            found[labels[COMPONENT]] = Peer(labels, HOME, named)
    return found


def policies(features: Features) -> list[Document]:
    found = of_kind(documents(features), "NetworkPolicy")
    return [{**each, "metadata": {"namespace": NAMESPACE, **each["metadata"]}} for each in found]


@pytest.mark.parametrize("features", NEEDED, ids="+".join)
def test_exactly_the_flows_that_are_needed_are_allowed(features: Features) -> None:
    known, rules = peers(features), policies(features)
    ours = known.keys() - OTHERS.keys()
    ports = (API, REDIS, HTTPS, HTTP, 9790, 22)
    found = {
        (source, target, port)
        for (source, target), port in itertools.product(itertools.permutations(known, 2), ports)
        if {source, target} & ours and target != "dns"
        if allowed(rules, known[source], known[target], port)
    }
    # a port without a peer, as of a bucket whose address is not known, is open to all addresses
    anywhere = {each for each in found if each[0] in ours and each[1] in OTHERS}
    assert found - anywhere == {each for each in NEEDED[features] if each[1] not in OTHERS}
    assert {each for each in anywhere if each[1] == "outside"} == {
        each for each in NEEDED[features] if each[1] == "outside"
    }


@pytest.mark.parametrize("features", NEEDED, ids="+".join)
def test_every_component_but_redis_may_look_names_up(features: Features) -> None:
    known, rules = peers(features), policies(features)
    for name in known.keys() - OTHERS.keys():
        for protocol in ("UDP", "TCP"):
            looks_up = allowed(rules, known[name], known["dns"], 53, protocol)
            assert looks_up is (name != "redis"), name


def test_without_peers_of_the_api_given_anybody_may_reach_it() -> None:
    features: Features = ("network-policies",)
    rules = of_kind(
        documents(features, "helm4", "--set=networkPolicy.apiFrom=null"), "NetworkPolicy"
    )
    known = peers(features)
    for name in ("trainer", "stranger", "outside", "worker"):
        homed = [
            {**each, "metadata": {"namespace": NAMESPACE, **each["metadata"]}} for each in rules
        ]
        assert allowed(homed, known[name], known["api"], API) is (name != "worker")
