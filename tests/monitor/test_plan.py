"""Plans fit into the memory they are given and cut the work no finer than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forcegauge.errors import RunError
from forcegauge_monitor.entk.plan import ModelSize, Work, free_memory, make_plan, size_of
from tests.monitor import tinies

GIB = 2**30

MODEL = ModelSize(
    weights=2 * GIB,
    trained={f"layer{i}": 2**24 for i in range(32)},
    width=60_000,
    heads=320,
    vocabulary=50_000,
    multiplied=2**29,
    head=2**26,
)
WORK = Work(
    probes={f"type{i}": 8 for i in range(12)},
    tokens=80,
    longest=120,
    longest_response=60,
    samples=512,
    kernel_probes=0,
    kernel_updated=2,
    kernel_observed=12,
    kernel_kinds=2,
    seeds=4,
    adam=False,
    validity=False,
)


def test_with_enough_memory_nothing_is_cut() -> None:
    plan = make_plan(MODEL, WORK, 200 * GIB)
    assert (plan.storage, len(plan.groups), len(plan.blocks)) == ("float32", 1, 1)
    assert plan.groups[0] == tuple(WORK.probes)


def test_less_memory_means_narrower_numbers_then_groups_then_blocks() -> None:
    plans = [make_plan(MODEL, WORK, size * GIB) for size in (40, 22, 12, 8)]
    assert [plan.storage for plan in plans] == ["float32", *["bfloat16"] * 3]
    assert [len(plan.groups) for plan in plans[:3]] == [1, 1, 2]
    assert len(plans[3].blocks) > 1
    for plan, size in zip(plans, (40, 22, 12, 8), strict=True):
        assert plan.peak_bytes <= 0.85 * size * GIB
        assert [name for group in plan.groups for name in group] == list(WORK.probes)
        assert [name for block in plan.blocks for name in block] == list(MODEL.trained)
    costs = [plan.forwards for plan in plans]
    assert costs == sorted(costs)


def test_when_nothing_fits_it_says_how_much_is_needed() -> None:
    with pytest.raises(RunError, match=r"needs \d+\.\d GiB and 1\.7 GiB may be used"):
        make_plan(MODEL, WORK, 2 * GIB)


def test_cost_grows_linearly_with_samples_and_barely_with_types() -> None:
    def forwards(**changes: object) -> float:
        return make_plan(MODEL, replace(WORK, **changes), 200 * GIB).forwards  # type: ignore[arg-type]

    one, two, four = (forwards(samples=512 * factor) for factor in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one))
    few = forwards(probes={"chosen": 96})
    assert few == pytest.approx(one, rel=0.05)


def test_kernel_and_adam_are_planned_for() -> None:
    plain = make_plan(MODEL, WORK, 200 * GIB)
    adam = make_plan(MODEL, replace(WORK, adam=True), 200 * GIB)
    kernel = make_plan(MODEL, replace(WORK, kernel_probes=8), 200 * GIB)
    assert adam.peak_bytes > plain.peak_bytes + 20 * GIB
    assert kernel.forwards > plain.forwards


def test_the_size_of_a_model_without_weights_is_that_of_the_model() -> None:
    net = tinies.model("qwen2", tie_word_embeddings=False)
    with torch.device("meta"):
        empty = type(net)(net.config)
    assert size_of(empty, 4) == size_of(net, 4)
    size = size_of(net, 4)
    assert size.weights == 4 * sum(p.numel() for p in net.parameters())
    assert size.head == tinies.VOCABULARY * 16


def test_experts_count_as_far_as_a_token_sees_them() -> None:
    dense = size_of(tinies.model("qwen3_moe", num_experts_per_tok=1), 4)
    both = size_of(tinies.model("qwen3_moe", num_experts_per_tok=2), 4)
    assert both.weights == dense.weights
    assert both.multiplied - dense.multiplied == 2 * 3 * 8 * 16


def test_free_memory_heeds_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert 0 < free_memory(device) < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr("forcegauge_monitor.entk.plan.CONTROL_GROUP", tmp_path)
    assert free_memory(device) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(device) > 600
