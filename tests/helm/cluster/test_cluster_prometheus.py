"""What the chart gives a real Prometheus Operator: its Prometheus finds runs and raises alarms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from forcegauge.exporter import RunCollector, build_snapshot
from tests import tiny
from tests.dashboards.replay import fleet, states
from tests.helm.cluster.figures import timed
from tests.helm.cluster.images import OLD
from tests.helm.cluster.kube import Cluster, Object, eventually, ready
from tests.helm.cluster.release import Release, images
from tests.monitor.chaos import make_inputs
from tests.servers import Prometheus

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

EXAMPLES = Path(__file__).parents[3] / "helm" / "examples"
RECORD = "dpo-squeeze-0"
UNPRIVILEGED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
VALUES = {
    **images(),
    "monitoring": {
        "additionalLabels": {"release": "stack"},
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True, "interval": "2s", "scrapeTimeout": "2s"},
        "prometheusRule": {"enabled": True},
    },
    "checkpoints": {"training": {"claim": "training", "mountPath": "/training"}},
    "config": {"snapshotEvery": 1, "kernelProbes": 0},
}


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart with all that it has for an operator, beside a volume for training."""
    cluster.operator()
    with cluster.namespace("watched") as namespace:
        one = Release(cluster, "helm4", namespace)
        cluster.apply(_claim("training"), namespace=namespace)
        one.put("install", VALUES)
        yield one


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, release: Release) -> Prometheus:
    """A Prometheus that the operator runs; it takes what has the label of its stack."""
    cluster.apply(*_stack())
    found: list[Object] = []

    def runs() -> bool:
        found[:] = cluster.pods("default", {"app.kubernetes.io/name": "prometheus"})
        return bool(found) and ready(found[0])

    with timed("the operator's Prometheus is ready"):
        eventually(runs, "Prometheus is ready")
    return Prometheus(f"http://{found[0]['status']['podIP']}:9090")


def test_the_monitor_is_scraped_through_its_servicemonitor(prometheus: Prometheus) -> None:
    found = eventually(partial(prometheus.query, "forcegauge_monitor_store_up == 1"), "a scrape")

    assert found[0]["metric"]["namespace"] == "watched"  # type: ignore[index]


def test_the_rules_are_loaded_and_evaluate_without_error(prometheus: Prometheus) -> None:
    wanted = yaml.safe_load((EXAMPLES.parent / "forcegauge/files/rules.yaml").read_text())

    def evaluated() -> list[dict[str, Any]]:
        groups = prometheus.rule_groups()
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if rules and all(rule["health"] != "unknown" for rule in rules) else []

    rules = eventually(evaluated, "the rules are evaluated")
    assert {rule.get("lastError", "") for rule in rules} == {""}
    assert len(rules) == sum(len(group["rules"]) for group in wanted["groups"])


def test_a_training_job_is_found_and_its_checkpoint_gets_a_snapshot(
    cluster: Cluster, release: Release, prometheus: Prometheus, tmp_path: Path
) -> None:
    make_inputs(tmp_path / "inputs")
    place = cluster.volume(release.namespace, "training")
    shutil.copytree(tmp_path / "inputs/checkpoint-2", place / "model")
    tiny.probe_set(4).save(place / "probes.jsonl")
    shutil.copy(tmp_path / "inputs/train.jsonl", place)
    for path in (place, *place.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    release.kubectl("create", "configmap", "train", f"--from-file={EXAMPLES / 'train.py'}")

    job = yaml.safe_load((EXAMPLES / "job.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["image"] = OLD
    container["args"] += ["--steps=1000", "--save-every=600"]
    container["env"].append({"name": "OMP_NUM_THREADS", "value": "1"})
    cluster.apply(job, namespace=release.namespace)

    series = partial(prometheus.query, 'last_over_time(forcegauge_probe_step{run="my-run"}[10m])')
    with timed("a training pod is scraped"):
        found = eventually(series, "the training's pod is scraped")
    assert found[0]["metric"]["namespace"] == "watched"  # type: ignore[index]
    release.kubectl("wait", "job/train", "--for=condition=complete", "--timeout=300s")
    run = release.insist("GET", "/api/v1/runs/my-run")
    assert run["run"]["state"] == "ended", run
    done = 'forcegauge_snapshots_total{run="my-run",state="done"} 1.0'
    eventually(lambda: done in release.insist("GET", "/metrics"), "its checkpoint has a snapshot")


def test_a_replayed_squeezing_run_raises_the_alarm(
    cluster: Cluster, release: Release, prometheus: Prometheus, tmp_path: Path
) -> None:
    release.kubectl("create", "configmap", "pages", f"--from-file={_pages(tmp_path / 'pages')}")
    script = Path(__file__).with_name("exporter_pod.py")
    release.kubectl("create", "configmap", "exporter", f"--from-file={script}")
    cluster.apply(_exporter(), namespace=release.namespace)

    firing = f'ALERTS{{alertname="ForceGaugeSqueezing",alertstate="firing",run="{RECORD}"}}'
    with timed("ForceGaugeSqueezing fires, after the pod was made"):
        found = eventually(partial(prometheus.query, firing), "ForceGaugeSqueezing fires")
    assert found[0]["metric"]["namespace"] == "watched"  # type: ignore[index]


def _pages(folder: Path) -> Path:
    """What the record's agent would have shown after each probe."""
    folder.mkdir()
    [run] = [run for run in fleet() if run.record == RECORD][:1]
    shown = [state for _, state in states(run) if state.probe_step == state.train_step]
    for number, state in enumerate(shown):
        collector, registry = RunCollector(), CollectorRegistry()
        collector.publish(build_snapshot(state))
        registry.register(collector)
        (folder / f"{number:03}.prom").write_bytes(generate_latest(registry))
    return folder


def _exporter() -> Object:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "exporter",
        "image": OLD,
        "command": ["python", "/scripts/exporter_pod.py", "/pages", "2"],
        "ports": [{"name": "forcegauge", "containerPort": 9790}],
        "securityContext": context,
        "volumeMounts": [
            {"name": "exporter", "mountPath": "/scripts"},
            {"name": "pages", "mountPath": "/pages"},
        ],
    }
    volumes = [{"name": name, "configMap": {"name": name}} for name in ("exporter", "pages")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "replayed", "labels": {"forcegauge/agent": "true"}},
        "spec": {"containers": [container], "volumes": volumes, "securityContext": UNPRIVILEGED},
    }


def _stack() -> list[Object]:
    labelled = {"matchLabels": {"release": "stack"}}
    reads = {"apiGroups": [""], "resources": ["pods", "services", "endpoints"]}
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]}
    verbs = {"verbs": ["get", "list", "watch"]}
    rbac, meta = "rbac.authorization.k8s.io", {"name": "stack"}
    kinds = ("serviceMonitor", "podMonitor", "rule", "scrapeConfig")
    spec = {
        "image": "localhost/prometheus:v3",
        "version": "v3.5.0",
        "serviceAccountName": "stack",
        "securityContext": {**UNPRIVILEGED, "runAsUser": 65534, "fsGroup": 65534},
        "evaluationInterval": "2s",
        **{f"{kind}Selector": labelled for kind in kinds},
        **{f"{kind}NamespaceSelector": {} for kind in kinds},
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": meta,
            "rules": [reads | verbs, slices | verbs],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "stack"},
            "subjects": [{"kind": "ServiceAccount", "name": "stack", "namespace": "default"}],
        },
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "Prometheus",
            "metadata": meta,
            "spec": spec,
        },
    ]


def _claim(name: str) -> Object:
    resources = {"requests": {"storage": "1Gi"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": resources}
    kind = "PersistentVolumeClaim"
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
