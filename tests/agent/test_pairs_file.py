"""The ranking's file at the size of a real dataset."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcegauge.pairs_file import add_rows, put_in_order, read_measured
from forcegauge.pairs_report import ranking_page
from forcegauge.pairs_survey import Source, survey

COUNT = 100_000
MANY = 200
"""Rows that one window adds."""


@pytest.fixture
def dataset(tmp_path: Path) -> Source:
    with (tmp_path / "train.jsonl").open("w") as file:
        for i in range(COUNT):
            answers = {"chosen": f"yes, {i}", "rejected": "" if i % 50 == 7 else f"no, {i}"}
            file.write(json.dumps({"prompt": f"is it {i}?", **answers}) + "\n")
    return Source(str(tmp_path / "train.jsonl"))


@pytest.mark.slow
def test_a_hundred_thousand_pairs_are_looked_through_and_ranked_in_a_few_megabytes(
    dataset: Source, tmp_path: Path
) -> None:
    out, run = tmp_path / "out.jsonl", ["weights", None, None]
    tracemalloc.start()
    try:
        looked = survey(dataset)
        window: list[dict[str, Any]] = []
        for row in _measured(dataset, looked, run):
            window.append(row)
            if len(window) == MANY:
                add_rows(out, window)
                window = []
        add_rows(out, window)
        there = read_measured(out, "model", looked, run)
        ranking = put_in_order(out, 10)
        texts = dataset.pick({row["id"] for row in (*ranking.top, *ranking.bottom)})
        page = ranking_page(ranking, texts, "train", "model", [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (looked.rows, looked.pairs) == (COUNT, COUNT * 49 // 50)
    assert looked.left_out.first == {"rejected is empty": "line-8"}
    assert sum(there) == ranking.count == looked.pairs
    ranked = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["rank"] for row in ranked] == list(range(1, looked.pairs + 1))
    values = [row["entanglement"] for row in ranked]
    assert values == sorted(values, reverse=True)
    assert len({row["id"] for row in ranked}) == looked.pairs
    # as objects the pairs alone would take 80 MB
    assert peak < 16e6
    assert len(page) < 100_000


def _measured(dataset: Source, looked: Any, run: list[Any]) -> Iterator[dict[str, Any]]:
    values = np.random.default_rng(0).normal(1.0, 0.5, COUNT + 1)
    for pair, value in zip(dataset.pairs(), values, strict=False):
        mark = looked.expected(pair.id, run)
        numbers = {"entanglement": float(value), "ches": 1.0, "squeeze_law_nats": 2.0}
        yield {"id": pair.id, "model": "model", **numbers, "hash": mark}
