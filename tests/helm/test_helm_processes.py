"""The commands of a release without values run as plain processes, and take a snapshot."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.charts import documents
from tests.helm.node import Node
from tests.monitor.chaos import make_inputs
from tests.servers import fetch, require, wait_for

pytestmark = pytest.mark.slow

COMPONENTS = ("redis", "api", "worker", "beat")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    require("redis-server")
    made = Node(documents(), tmp_path_factory.mktemp("node"))
    with made.running(*COMPONENTS) as processes:
        wait_for(lambda: made.passes("api", "readiness"))
        yield made
        assert {name: each.poll() for name, each in processes.items()} == dict.fromkeys(COMPONENTS)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_probes_pass(node: Node, component: str) -> None:
    (container,) = node.pod(component)["spec"]["containers"]
    probes = [name for name in ("liveness", "readiness") if f"{name}Probe" in container]
    assert "liveness" in probes
    for probe in probes:
        wait_for(lambda name=probe: node.passes(component, name))  # type: ignore[misc]


def test_a_snapshot_asked_for_with_the_rendered_token_is_done(node: Node) -> None:
    storage = node.environment("worker")["FORCEGAUGE_MONITOR_STORAGE"]
    inputs = make_inputs(Path(storage) / "inputs")
    facts = {"probes": inputs["probes"], "train": inputs["train"], "loss": "dpo"}
    asked(node, "/runs", {"run": "a", "record_id": "a", "model": "tiny", **facts})
    body = {"checkpoint": inputs["checkpoint"], "step": 2}
    key = asked(node, "/runs/a/snapshots", body)["id"]
    ended = ("done", "failed")
    found = wait_for(lambda: over(asked(node, f"/runs/a/snapshots/{key}"), ended))
    assert found["state"] == "done", found
    page = fetch(f"http://127.0.0.1:{node.port(8790)}/metrics")[1]
    assert 'forcegauge_snapshot_step{run="a"} 2.0' in page


def over(snapshot: dict[str, Any], states: tuple[str, ...]) -> dict[str, Any]:
    return snapshot if snapshot["state"] in states else {}


def test_without_the_token_nothing_is_answered(node: Node) -> None:
    assert fetch(f"http://127.0.0.1:{node.port(8790)}/api/v1/runs")[0] == 401


def asked(node: Node, path: str, body: Any = None) -> Any:
    """The API's answer to the token that the chart has made."""
    token = node.data("Secret", "forcegauge-token")["token"]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    url = f"http://127.0.0.1:{node.port(8790)}/api/v1{path}"
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return json.loads(answer.read())
