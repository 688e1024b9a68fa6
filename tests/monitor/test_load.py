"""The monitor under load, smaller than `make bench-monitor` and with the same limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.monitor import READS, Service, beats, memory, page, register, service

RUNS = 10_000
LARGEST_RATIO = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service")) as running:
        register(running.redis, RUNS)
        yield running


@pytest.mark.parametrize("path", READS)
def test_a_page_of_thousands_of_runs_costs_little_more_than_its_bytes(
    found: Service, path: str
) -> None:
    measured = page(found, path, rounds=9)
    assert measured.bytes > RUNS * 50
    assert measured.ratio <= LARGEST_RATIO


def test_two_hundred_heartbeats_a_second_are_taken_without_an_error(found: Service) -> None:
    measured = beats(found, rate=200, duration=3)
    assert measured.failures == 0
    assert measured.got > 190


def test_memory_stays_flat_over_many_heartbeats(found: Service) -> None:
    measured = memory(found, runs=5, hour=400)
    assert measured.server[1] < measured.server[0] * 1.05
    assert measured.redis[1] < measured.redis[0] * 1.05
