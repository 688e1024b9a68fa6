"""Which connections NetworkPolicies allow, as their specification says; nothing is enforced here.

What is left out, since the chart has no use for it: ranges of ports, and protocols but TCP and UDP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.helm.charts import Document

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """A pod with the labels of its namespace, or an address outside of the cluster."""

    labels: Labels = field(default_factory=dict)
    namespace: Labels = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = ""


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    """Whether a label selector selects these labels; an empty one selects all."""
    same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return same and all(_holds(each, labels) for each in selector.get("matchExpressions", []))


def _holds(expression: Mapping[str, Any], labels: Labels) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(expression["operator"])


def allowed(
    policies: Sequence[Document], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the source may open a connection to a port of the target."""
    leaves = _way(policies, "Egress", source, target, port, protocol, target)
    return leaves and _way(policies, "Ingress", target, source, port, protocol, target)


def _way(
    policies: Sequence[Document],
    direction: str,
    mine: Peer,
    other: Peer,
    port: int,
    protocol: str,
    listener: Peer,
) -> bool:
    """Whether the policies that select a pod allow it one direction; without any all is allowed."""
    if mine.address:
        return True
    specs = [each["spec"] for each in policies if _applies(each, direction, mine)]
    side = "to" if direction == "Egress" else "from"
    rules = [rule for spec in specs for rule in spec.get(direction.lower()) or []]
    return not specs or any(
        _peers(rule.get(side), other, mine) and _ports(rule.get("ports"), port, protocol, listener)
        for rule in rules
    )


def _applies(policy: Document, direction: str, mine: Peer) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes", ["Ingress", *(["Egress"] if "egress" in spec else [])])
    at_home = mine.namespace.get("kubernetes.io/metadata.name") == policy["metadata"]["namespace"]
    return direction in types and at_home and selects(spec["podSelector"], mine.labels)


def _peers(peers: Sequence[Mapping[str, Any]] | None, other: Peer, mine: Peer) -> bool:
    return not peers or any(_is_peer(each, other, mine) for each in peers)


def _is_peer(peer: Mapping[str, Any], other: Peer, mine: Peer) -> bool:
    if "ipBlock" in peer:
        return bool(other.address) and _in_block(peer["ipBlock"], other.address)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        near = selects(peer["namespaceSelector"], other.namespace)
    else:
        near = other.namespace == mine.namespace
    return near and selects(peer.get("podSelector", {}), other.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    found = ipaddress.ip_address(address)
    inside = found in ipaddress.ip_network(block["cidr"])
    return inside and all(
        found not in ipaddress.ip_network(part) for part in block.get("except", [])
    )


def _ports(
    ports: Sequence[Mapping[str, Any]] | None, port: int, protocol: str, listener: Peer
) -> bool:
    return not ports or any(
        each.get("protocol", "TCP") == protocol
        and each.get("port", port) in (port, *(n for n, p in listener.ports.items() if p == port))
        for each in ports
    )
