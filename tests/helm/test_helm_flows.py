"""The evaluator of NetworkPolicies itself, on policies whose meaning Kubernetes documents."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.flows import Peer, allowed, selects

HOME = {"kubernetes.io/metadata.name": "home"}
WEB = Peer({"app": "web"}, HOME, {"http": 8080})
DATA = Peer({"app": "data"}, HOME, {"db": 6379})
STRANGER = Peer({"app": "web"}, {"kubernetes.io/metadata.name": "away"})
OUTSIDE = Peer(address="203.0.113.9")


def policy(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "home"}, "spec": spec}


def of_data(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    selector = {"matchLabels": {"app": "data"}}
    return [policy(podSelector=selector, policyTypes=["Ingress"], ingress=list(rules))]


def test_without_a_policy_all_is_allowed() -> None:
    assert allowed([], WEB, DATA, 6379)


def test_a_policy_without_rules_allows_nothing() -> None:
    assert not allowed(of_data(), WEB, DATA, 6379)
    assert allowed(of_data(), DATA, WEB, 8080)


@pytest.mark.parametrize("port", ["db", 6379])
def test_a_rule_allows_its_peer_at_its_port_alone(port: str | int) -> None:
    web = {"podSelector": {"matchLabels": {"app": "web"}}}
    policies = of_data({"from": [web], "ports": [{"port": port}]})
    assert allowed(policies, WEB, DATA, 6379)
    assert not allowed(policies, WEB, DATA, 6380)
    assert not allowed(policies, WEB, DATA, 6379, "UDP")
    assert not allowed(policies, STRANGER, DATA, 6379)
    assert not allowed(policies, OUTSIDE, DATA, 6379)


def test_a_selector_of_namespaces_reaches_the_others() -> None:
    policies = of_data({"from": [{"namespaceSelector": {}}]})
    assert allowed(policies, STRANGER, DATA, 6379)
    assert not allowed(policies, OUTSIDE, DATA, 6379)


def test_a_block_of_addresses_spares_its_exceptions() -> None:
    block = {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}
    rules = [{"to": [{"ipBlock": block}], "ports": [{"port": 443}]}]
    policies = [policy(podSelector={}, policyTypes=["Egress"], egress=rules)]
    assert allowed(policies, WEB, OUTSIDE, 443)
    assert not allowed(policies, WEB, OUTSIDE, 80)
    assert not allowed(policies, WEB, Peer(address="10.1.2.3"), 443)
    assert not allowed(policies, WEB, DATA, 443)


@pytest.mark.parametrize(
    ("operator", "values", "held"),
    [
        ("In", ["web"], True),
        ("NotIn", ["web"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_expressions_of_selectors(operator: str, values: list[str], held: bool) -> None:
    expression = {"key": "app", "operator": operator, "values": values}
    assert selects({"matchExpressions": [expression]}, {"app": "web"}) is held
