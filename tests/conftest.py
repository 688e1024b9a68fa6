"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# before anything imports Triton: its kernels then run on the CPU
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    """All cores for the real model; one for tiny ones, which threads only slow down."""
    slow = request.node.get_closest_marker("slow") is not None
    torch.set_num_threads((os.cpu_count() or 1) if slow else 1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted once and kept in the user's cache."""
    from forcegauge.demo.model import demo_model

    return demo_model()
