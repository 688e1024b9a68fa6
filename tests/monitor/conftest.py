"""Fixtures that several test files of the monitor share."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from forcegauge_monitor.connection import connect
from forcegauge_monitor.store import Store
from tests import tiny
from tests.monitor.storing import Clock
from tests.servers import redis_server


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two checkpoints of a tiny model, probes and training pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    for step in (1, 2):
        net = tiny.llama()
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(8 if parameter.dim() == 2 else 1)
                parameter.add_(step * 1e-3 * torch.randn_like(parameter))
        net.save_pretrained(folder / f"checkpoint-{step}")
        tiny.tokenizer().save_pretrained(folder / f"checkpoint-{step}")
    tiny.probe_set(5).save(folder / "probes.jsonl")
    rows = [
        {"prompt": f"what of {word}?", "chosen": word, "rejected": f"{word} no {end}" * times}
        for word, end, times in zip(tiny.WORDS * 2, "abcdefghijkl", (1, 2, 3) * 4, strict=True)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "checkpoint": str(folder / "checkpoint-2"),
        "previous": str(folder / "checkpoint-1"),
        "probes": str(folder / "probes.jsonl"),
        "train": str(folder / "train.jsonl"),
    }


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis that all tests share; `store` empties it."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def store(shared_redis: str) -> Iterator[Store]:
    """A store on an empty Redis."""
    client = connect(shared_redis)
    client.flushall()
    client.close()
    made = Store(shared_redis)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """The time of `timed`."""
    return Clock()


@pytest.fixture
def timed(store: Store, shared_redis: str, clock: Clock) -> Iterator[Store]:
    """A store whose time is told and whose leases are short, on the Redis that `store` empties."""
    made = Store(shared_redis, clock=clock, lease_seconds=0.2)
    yield made
    made.close()
