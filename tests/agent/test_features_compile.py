"""torch.compile: a probe compiles nothing, and what the training compiled stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from forcegauge.capture import Capture
from forcegauge.gauge import ForceGauge
from forcegauge.isolation import undisturbed
from forcegauge.record import probes_by_phase, read_record
from forcegauge.scorer import Scorer
from tests import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"  # torch compiling a layer
)

HOWS = ("wrapped", "in place", "by layer")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def compiled(how: str) -> nn.Module:
    model: Any = tiny.llama()
    if how == "wrapped":
        return cast(nn.Module, torch.compile(model, backend="aot_eager", fullgraph=True))
    for part in [model] if how == "in place" else model.model.layers:
        part.compile(backend="aot_eager", fullgraph=True)
    return cast(nn.Module, model)


def work() -> tuple[int, int]:
    """How many graphs were compiled, and how often a compilation was tried."""
    return counters["stats"]["unique_graphs"], sum(counters["frames"].values())


def weights_after(model: nn.Module, gauge: ForceGauge | None) -> tuple[list[torch.Tensor], Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.tensor([tiny.tokenizer()("what of tea is hot? tea is hot")["input_ids"]] * 2)
    if gauge is not None:
        gauge.step(model, 0)
        assert work() == (0, 0)
        gauge.attach(model)
    for step in range(1, 5):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if gauge is not None:
            gauge.step(model, step)
    return [weight.detach().clone() for weight in model.parameters()], work()


@pytest.mark.parametrize("how", HOWS)
def test_training_and_its_graphs_are_the_same_with_the_gauge(how: str, tmp_path: Path) -> None:
    plain, graphs = weights_after(compiled(how), None)
    torch._dynamo.reset()
    counters.clear()
    directory = tmp_path / "gauge"
    with ForceGauge(
        tiny.probe_set(), tiny.tokenizer(), every=1, budget=None, port=0, directory=directory
    ) as gauge:
        watched, more = weights_after(compiled(how), gauge)
    assert more == graphs
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    probes = probes_by_phase(read_record(directory))["train"]
    assert sum("chosen_change_nats" in line["signals"] for line in probes[1:]) >= 3
    assert gauge.failures["scoring"] == 0


@pytest.mark.parametrize("how", HOWS)
def test_a_compiled_model_has_the_scores_of_the_plain_one(how: str) -> None:
    model, plain = compiled(how), tiny.llama()
    found = []
    for each in (model, plain):
        with undisturbed(each):
            found.append(Scorer(tiny.probe_set(), tiny.tokenizer()).score(each))
    for name, values in found[1].values.items():
        np.testing.assert_allclose(found[0].values[name], values, atol=1e-4, err_msg=name)


def test_forces_of_a_loss_outside_of_the_compiled_code_are_those_of_the_plain_model() -> None:
    found = []
    tokens = torch.tensor([tiny.tokenizer()("tea is hot")["input_ids"]] * 2)
    for model in (compiled("wrapped"), tiny.llama()):
        capture = Capture().attach(model)
        logits = model(input_ids=tokens).logits
        nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        ).backward()
        capture.step()
        found.append(capture.take())
        assert capture.error is None
    assert found[0] is not None
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_forces_of_a_loss_inside_of_the_compiled_code_are_those_of_the_plain_model() -> None:
    found = []
    tokens = torch.tensor([tiny.tokenizer()("tea is hot")["input_ids"]] * 2)
    for model in (compiled("wrapped"), tiny.llama()):
        capture = Capture().attach(model)
        model(input_ids=tokens, labels=tokens).loss.backward()
        capture.step()
        values = capture.take()
        assert values is not None, capture.error
        values.pop("force_uncovered_ratio", None)
        found.append(values)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
