"""What lies beside the chart says the same as it: images, Compose, examples, the release."""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from forcegauge_monitor.settings import PREFIX, Settings
from tests.helm.charts import CHART, containers, documents, pod_template
from tests.helm.restricted import violations
from tests.helm.schemas import VERSIONS, problems

ROOT = CHART.parents[1]
IMAGES, EXAMPLES = ROOT / "helm" / "images", ROOT / "helm" / "examples"
COMPOSE = yaml.safe_load((ROOT / "helm" / "compose" / "compose.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def test_the_dockerfiles_differ_in_their_builds_of_torch_alone() -> None:
    cpu, gpu = ((IMAGES / kind / "Dockerfile").read_text().splitlines() for kind in ("cpu", "gpu"))
    changed = [line[2:] for line in difflib.ndiff(cpu, gpu) if line[0] in "+-"]

    words = ("TORCH_INDEX", "torch.version.cuda", "image.description")
    assert all(line.startswith("#") or any(word in line for word in words) for line in changed)


def test_the_image_runs_as_the_user_of_the_chart() -> None:
    context = VALUES["podDefaults"]["podSecurityContext"]

    user = f"USER {context['runAsUser']}:{context['runAsGroup']}"
    assert user in (IMAGES / "cpu" / "Dockerfile").read_text().splitlines()


def test_the_build_is_sent_what_it_copies() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    lines = (IMAGES / "cpu" / "Dockerfile").read_text().splitlines()
    copied = {
        path
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for path in shlex.split(line)[1:-1]
    }

    assert copied
    assert all(any(each.startswith(f"!{path}") for each in sent) for path in copied)
    assert all((ROOT / path).exists() for path in copied)


def test_whatever_an_image_needs_is_pinned() -> None:
    said = subprocess.run(
        [sys.executable, str(IMAGES / "requirements.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {_plain(Requirement(line).name) for line in said.stdout.splitlines()}
    lines = (IMAGES / "constraints.txt").read_text().splitlines()
    pinned = {_plain(line.partition("==")[0]) for line in lines if "==" in line}

    assert {"celery", "transformers"} <= wanted
    assert wanted - pinned == {"torch"}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("component", ["api", "worker", "beat", "redis"])
def test_compose_runs_the_commands_of_the_chart(component: str) -> None:
    [container] = [
        each
        for document in documents()
        if document["kind"] in ("Deployment", "StatefulSet")
        and document["metadata"]["labels"]["app.kubernetes.io/component"] == component
        for each in containers(document["spec"]["template"])
    ]

    command = [part.replace("$$", "$") for part in COMPOSE["services"][component]["command"]]
    entrypoint = [] if component == "redis" else ["forcegauge"]
    assert [*entrypoint, *command] == container["command"] + container["args"]


def test_compose_knows_the_settings_and_limits_rights_as_the_chart_does() -> None:
    ours = [COMPOSE["services"][name] for name in ("api", "worker", "beat")]
    names = {name for service in ours for name in service["environment"]}

    assert {name.removeprefix(PREFIX).lower() for name in names} <= set(Settings.model_fields)
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in ours)
    assert COMPOSE["services"]["redis"]["image"].endswith(
        f"{VALUES['redis']['image']['repository']}:{VALUES['redis']['image']['tag']}"
    )


def test_composes_variables_are_told() -> None:
    text = (ROOT / "helm" / "compose" / "compose.yaml").read_text()
    told = (ROOT / "helm" / "compose" / "README.md").read_text()

    variables = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert variables
    assert all(f"{name}=" in told for name in variables)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_training_job_is_valid(version: str) -> None:
    [job] = yaml.safe_load_all((EXAMPLES / "job.yaml").read_text())

    assert problems(job, version) == []


@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml", "rayjob.yaml"])
def test_trainers_have_the_label_and_the_port_that_the_chart_looks_for(name: str) -> None:
    made = list(yaml.safe_load_all((EXAMPLES / name).read_text()))
    labels = VALUES["monitoring"]["podMonitor"]["selector"]["matchLabels"]
    pods = [each for each in _pods(made) if labels.items() <= each["metadata"]["labels"].items()]

    assert pods
    assert list(_pods(made)) == pods
    for pod in pods:
        [container] = pod["spec"]["containers"]
        assert {"name": "forcegauge", "containerPort": 9790} in container["ports"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_the_agent_knows_the_environment_of_the_examples(path: Path) -> None:
    told = (ROOT / "agent" / "README.md").read_text()
    used = set(re.findall(r"FORCEGAUGE_[A-Z_]+\b(?!\*)", path.read_text())) - {"FORCEGAUGE_"}

    assert all(name in told for name in used), used


def test_the_batch_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "train.sbatch")], check=True)


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """Templates of pods, wherever they are: what has containers in its spec."""
    if isinstance(value, list):
        for each in value:
            yield from _pods(each)
    elif isinstance(value, dict):
        if "containers" in (value.get("spec") or {}):
            yield value
        for each in value.values():
            yield from _pods(each)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_there_is(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    called = " ".join(step.get("run", "") for step in steps)
    named = set(re.findall(r"(?<!\S)(\.ci/\w+|\.github/\S+\.py|helm/\S+)", called))
    matrix = [
        each["file"]
        for job in jobs.values()
        for each in job.get("strategy", {}).get("matrix", {}).get("include", [])
    ]

    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert ".ci/run" in named
    assert set(re.findall(r"\bmake ([\w-]+)", called)) <= {*targets}
    assert all((ROOT / name).exists() for name in [*named, *matrix])
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@\S+", s["uses"]) for s in steps if "uses" in s)
    assert all(needed in jobs for job in jobs.values() for needed in [job.get("needs")] if needed)


def test_a_release_needs_no_secret_but_the_runs_own_and_pushes_the_charts_images() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yaml").read_text()
    images = yaml.safe_load(text)["jobs"]["images"]["strategy"]["matrix"]["include"]
    wanted = [VALUES["image"], VALUES["workers"]["gpu"]["image"]]

    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}
    assert [each["repository"].rpartition("/")[2] for each in wanted] == [i["name"] for i in images]
    assert all(each["repository"].startswith("ghcr.io/") for each in wanted)


def test_a_release_has_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = chart["appVersion"]

    assert _checked(f"v{version}").returncode == 0
    wrong = _checked("v99.0")
    assert wrong.returncode == 1
    assert f"the tag is v99.0, pyproject.toml says {version}" in wrong.stderr


def _checked(tag: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / ".github" / "check_versions.py"
    command = [sys.executable, str(script), tag]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_job_passes_the_restricted_standard() -> None:
    job = yaml.safe_load((EXAMPLES / "job.yaml").read_text())
    pod = pod_template(job)
    assert pod is not None
    assert violations(pod) == []
