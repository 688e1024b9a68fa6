"""A Prometheus that knows 50 runs of 24 hours: Debian's, and the newest that we support."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboards.replay import backfill, replayed
from tests.servers import require


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in whose ``data`` the replayed runs are."""
    folder = tmp_path_factory.mktemp("blocks")
    backfill(folder)
    return folder


@pytest.fixture(scope="session", params=("oldest", "newest"))
def replay_url(
    request: pytest.FixtureRequest, blocks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real Prometheus over them."""
    folder = tmp_path_factory.mktemp(request.param)
    program = require("prometheus") if request.param == "oldest" else newest(folder)
    # a copy: what a newer version leaves there need not suit an older one
    shutil.copytree(blocks / "data", folder / "data")
    with replayed(folder, program) as server:
        yield server.url


def newest(folder: Path) -> str:
    """Prometheus 3, unpacked; skips the test where nobody says where it is."""
    tools = os.environ.get("FORCEGAUGE_TEST_TOOLS")
    if not tools:
        pytest.skip(
            "set FORCEGAUGE_TEST_TOOLS to a folder with prometheus.tar.xz, a release of 3.x"
        )
    with tarfile.open(Path(tools) / "prometheus.tar.xz") as archive:
        archive.extract("prometheus", folder, filter="data")
    return str(folder / "prometheus")
