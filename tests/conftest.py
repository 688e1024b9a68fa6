"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

# before anything imports Triton: its kernels then run on the CPU
os.environ["TRITON_INTERPRET"] = "1"
# a shell that runs the tests in the background ignores interrupts, and so would all they start
signal.signal(signal.SIGINT, signal.default_int_handler)


TOGETHER = ("e2e", "cluster")
"""Folders whose tests share what takes minutes to set up; these begin first."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests out by file, and some folders whole, where several processes run them."""
    for item in items:
        folder = item.path.parent.name
        group = folder if folder in TOGETHER else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.parent.name not in TOGETHER)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    """All cores for the real model; one for tiny ones, which threads only slow down."""
    slow = request.node.get_closest_marker("slow") is not None
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes) if slow else 1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted once and kept in the user's cache."""
    from forcegauge.demo.model import demo_model

    return demo_model()
