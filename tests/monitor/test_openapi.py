"""Requests of every kind that the OpenAPI allows, and of many that it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forcegauge_monitor.store import Store
from tests.monitor.asking import RUNS, api
from tests.servers import fetch, served

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.mark.slow
def test_no_request_breaks_it_and_every_answer_is_declared(store: Store, tmp_path: Path) -> None:
    with (
        api(store, tmp_path, snapshot_every=1, requests_per_second=0) as it,
        served(it.client.app) as url,
    ):
        it.register()
        program = str(Path(sys.executable).parent / "schemathesis")
        command = [program, "run", f"{url}/openapi.json"]
        options = ["--checks", ",".join(CHECKS), "--seed", "1"]
        found = subprocess.run(
            [*command, *options, "--phases", "coverage", "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout[-6000:]
        assert fetch(f"{url}{RUNS}")[0] == 200
