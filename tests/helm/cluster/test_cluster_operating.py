"""Every command of the operator's page runs as it is written, in its order."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.helm.cluster.figures import timed
from tests.helm.cluster.kube import Cluster
from tests.helm.cluster.release import images
from tests.helm.tools import program

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "helm" / "operating.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^```bash\n(.*?)^```|`((?:kubectl|helm) [^`\n]* --namespace [^`\n]*)`",
    PAGE,
    re.MULTILINE | re.DOTALL,
)
"""Blocks, and commands within sentences that name their namespace."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with what the page calls: its Helm takes images that the cluster can reach."""
    folder = tmp_path / "bin"
    folder.mkdir()
    values = tmp_path / "images.json"
    values.write_text(json.dumps(images()))
    helm = f"""#!/bin/sh
[ "$1" = install ] && set -- "$@" --values {values}
exec {program("helm4")} "$@"
"""
    (folder / "helm").write_text(helm)
    (folder / "helm").chmod(0o755)
    (folder / "kubectl").symlink_to(program("kubectl"))
    (folder / "forcegauge").symlink_to(Path(sys.executable).with_name("forcegauge"))
    return folder


def test_the_operators_page(cluster: Cluster, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    start = f'cd "{tmp_path}"; export PATH="{programs}:$PATH"\n'
    commands = [block or inline for block, inline in COMMANDS]
    assert len(commands) >= 7

    with cluster.namespace("monitoring") as namespace:
        for each in commands:
            with timed(f"operating.md: {each.splitlines()[0][:60]}"):
                cluster.run("bash", "-euo", "pipefail", "-c", start + each)
            # whoever types the next one looks first
            for one in cluster.get("deployments,statefulsets", "-n", namespace):
                name = f"{one['kind']}/{one['metadata']['name']}"
                cluster.kubectl("rollout", "status", name, "-n", namespace, "--timeout=300s")
