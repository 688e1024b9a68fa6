"""The benchmark of the agent's overhead, run on a tiny model: what it counts and what it writes."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from forcegauge.gauge import ForceGauge
from tests import tiny
from tests.benchmarks import overhead, overhead_page
from tests.benchmarks.overhead import Found, Loop, measure, table


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("run")
    ids = torch.tensor([tiny.tokenizer()("what of tea is hot? tea is hot")["input_ids"]])
    gauge = ForceGauge(
        tiny.probe_set(32), tiny.tokenizer(), directory=folder, every=8, budget=0.5, port=0
    )
    found = measure(Loop(tiny.llama(), cycle([ids])), gauge, 2, (20, 5))
    assert not gauge.failures
    return found


def test_late_probes_are_counted_apart_from_the_early_ones(found: Found) -> None:
    assert found.early_probes == 4
    assert len(found.probes) >= 2
    assert all(len(a) + len(b) == 20 for a, b in zip(found.ordinary, found.reading, strict=True))
    assert {len(block) for block in found.plain} == {5}
    assert any(found.reading)


def test_its_figures_make_a_table_and_a_page(found: Found) -> None:
    facts = found.facts()
    assert facts["ratio"] == pytest.approx(1 + sum(facts["parts"].values()))
    assert facts["peak_mib"]["with"] > 0
    assert "ratio of step times, after the early probes" in table(facts)
    more = {"threads": 2, "budget": 0.01, "minutes": 25.0, "set": 32}
    page = overhead_page.rendered({**facts, **more})
    assert f"| {facts['ratio']:.4f} |" in page
    assert f"{len(found.probes)} probes among them" in page


def test_the_ratio_is_what_calls_readings_and_hooks_add() -> None:
    found = Found(
        plain=[[1.0] * 10] * 2,
        ordinary=[[1.01] * 39] * 2,
        reading=[[1.41]] * 2,
        calls=[0.0] * 79 + [0.4],
        own_ratio=0.01,
    )
    facts = found.facts()
    assert facts["parts"]["calls"] == pytest.approx(0.4 / 80)
    assert facts["parts"]["reading"] == pytest.approx(0.8 / 80)
    assert facts["parts"]["hooks"] == pytest.approx(0.01)
    assert facts["ratio"] == pytest.approx(1.025)
    assert facts["own_ratio"] == pytest.approx(1 / 0.99)


def test_nothing_of_the_agent_is_left_on_a_model_without_it(tmp_path: Path) -> None:
    model = tiny.llama()
    hooks = SimpleNamespace(seen=[])
    ids = torch.tensor([[5, 6, 7, 8]])

    class Seeing(Loop):
        def step(self) -> float:
            hooks.seen.append(len(model._forward_hooks))
            return super().step()

    gauge = ForceGauge(tiny.probe_set(2), tiny.tokenizer(), directory=tmp_path, port=0)
    watched = overhead.Watched(Seeing(model, cycle([ids])), gauge)
    watched.step()
    watched.without(2)
    watched.step()
    assert hooks.seen == [1, 0, 0, 1]
    gauge.close()
