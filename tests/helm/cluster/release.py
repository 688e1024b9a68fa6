"""The chart as a release in the cluster, and its API as a client beside it sees that."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.helm.cluster.images import FORCEGAUGE, OLD, REDIS
from tests.helm.cluster.kube import Cluster, Object, eventually
from tests.helm.tools import program

CHART = Path(__file__).parents[3] / "helm" / "forcegauge"
NAME = "forcegauge"
STORAGE = "/var/lib/forcegauge"


def images(image: str = OLD) -> Object:
    """The values that tests have to give: no registry is reached from the cluster."""
    _, _, tag = image.rpartition(":")
    redis, _, redis_tag = REDIS.rpartition(":")
    return {
        "image": {"repository": FORCEGAUGE, "tag": tag},
        "redis": {"image": {"repository": redis, "tag": redis_tag}},
    }


@dataclass(frozen=True)
class Release:
    """A release named forcegauge in a namespace of its own."""

    cluster: Cluster
    helm: str
    namespace: str

    def call(self, *arguments: str, text: str | None = None) -> str:
        """What Helm prints."""
        where = ("--namespace", self.namespace)
        return self.cluster.run(program(self.helm), *arguments, *where, text=text)

    def put(self, verb: str, values: Object, chart: Path = CHART) -> str:
        """`helm install` or `helm upgrade`, until all is ready."""
        wait = ("--wait", "--timeout=5m", "--values=-")
        return self.call(verb, NAME, str(chart), *wait, text=json.dumps(values))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What kubectl prints, in the release's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, text=text)

    def settle(self) -> None:
        """Wait for every worker, as `helm/operating.md` says for Helm 3, which does not."""
        mine = f"--selector=app.kubernetes.io/instance={NAME}"
        self.kubectl("rollout", "status", "deployment", mine, "--timeout=5m")

    def secret(self, name: str, key: str) -> str:
        """What a Secret holds under a key."""
        data = self.cluster.get("secret", name, "-n", self.namespace)["data"]
        return base64.b64decode(data[key]).decode()

    @cached_property
    def token(self) -> str:
        """The token that the chart made."""
        return self.secret(f"{NAME}-token", "token")

    @cached_property
    def url(self) -> str:
        """The API's Service."""
        return f"http://{self.cluster.address(self.namespace, NAME)}"

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer of the API; 0 while nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read().decode()
                kind = answer.headers.get_content_type()
                return int(answer.status), json.loads(text) if "json" in kind and text else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def insist(self, method: str, path: str, body: Any = None) -> Any:
        """What is answered once somebody does, as a client gets that tries again."""

        def answer() -> list[Any]:
            status, found = self.ask(method, path, body)
            return [found] if 200 <= status < 300 else []

        return eventually(answer, f"{method} {path} is answered")[0]

    def component(self, name: str) -> list[Object]:
        """The pods of a component: api, worker, beat, redis."""
        labels = {"app.kubernetes.io/instance": NAME, "app.kubernetes.io/component": name}
        return self.cluster.pods(self.namespace, labels)

    def worker(self) -> str:
        """The name of a worker pod."""
        return str(self.component("worker")[0]["metadata"]["name"])

    def copy(self, folder: Path, name: str) -> str:
        """Put a folder on the storage, through a worker; its path there."""
        place = f"{STORAGE}/inputs/{name}"
        self.kubectl("exec", self.worker(), "--", "mkdir", "-p", f"{STORAGE}/inputs")
        self.kubectl("cp", str(folder), f"{self.worker()}:{place}")
        return place

    def snapshot(self, run: str, inputs: str, step: int = 2) -> str:
        """Register a run and ask for a snapshot of its checkpoint; the snapshot's id."""
        facts = {"probes": f"{inputs}/probes.jsonl", "train": f"{inputs}/train.jsonl"}
        about = {"run": run, "record_id": run, "model": "tiny", "loss": "dpo", **facts}
        self.insist("POST", "/api/v1/runs", about)
        body = {"checkpoint": f"{inputs}/checkpoint-2", "step": step}
        return str(self.insist("POST", f"/api/v1/runs/{run}/snapshots", body)["id"])

    def state(self, run: str, key: str) -> Object:
        """A snapshot as it is now; nothing while nobody answers."""
        status, found = self.ask("GET", f"/api/v1/runs/{run}/snapshots/{key}")
        return dict(found) if status == 200 else {}

    def finished(self, run: str, key: str, seconds: float = 600.0) -> Object:
        """A snapshot once it is over."""

        def over() -> Object:
            found = self.state(run, key)
            return found if found.get("state") in ("done", "failed", "cancelled") else {}

        return eventually(over, f"the snapshot of {run} is over", seconds)
