"""The Adam form is what a real Adam step does, and its state is read from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forcegauge_monitor.entk.adam import from_state, preconditioner
from forcegauge_monitor.entk.attribution import attribute, direction
from forcegauge_monitor.entk.rows import make_batches
from forcegauge_monitor.entk.state import NoStateError
from tests.monitor import tinies
from tests.monitor.sharded import grouped

RATE = 1e-4


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for item, weight in zip(*batch(seed), strict=True):
        (-(weight * tinies.logprobs(net, item)).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def batch(seed: int) -> tuple[Any, Any]:
    items = tinies.sequences(5, seed=seed)
    return items, tinies.weights(items, seed=seed)


@pytest.mark.parametrize("earlier", [0, 3])
def test_effects_of_all_samples_add_up_to_the_adam_step(earlier: int) -> None:
    net = tinies.model("qwen2")
    optimizer = torch.optim.AdamW(grouped(net), lr=RATE)
    for seed in range(earlier):
        step(net, optimizer, seed)
    names = [name for name, _ in net.named_parameters()]
    probes = tinies.sequences(3, seed=77)
    ones = [torch.ones(len(item.response)) for item in probes]
    raw = direction(net, names, make_batches(probes, 3), ones)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    momentum = {
        name: optimizer.state[p]["exp_avg"].clone() if earlier else torch.zeros_like(p)
        for name, p in net.named_parameters()
    }
    items, weights = batch(earlier)
    step(net, optimizer, earlier)
    scale = from_state(optimizer.state_dict(), net)
    moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    # the rest of the step is the momentum of the steps before: beta1 m, where a sample adds
    # (1 - beta1) times its gradient
    rest = {name: -scale[name] * 0.9 / (1 - 0.9) * momentum[name] for name in names}

    for name, parameter in net.named_parameters():
        parameter.data.copy_(before[name])
    directions = {name: (raw[name] * scale[name]).unsqueeze(0) for name in names}
    effects = attribute(net, make_batches(items, 5), weights, directions).sum()
    got = float(effects) + tinies.dot(raw, rest)
    assert got == pytest.approx(tinies.dot(raw, moved) / RATE, rel=1e-3)


def test_state_is_read_from_a_checkpoint_in_the_trainers_order(tmp_path: Path) -> None:
    net = tinies.model("gpt2")
    optimizer = torch.optim.AdamW(grouped(net), lr=RATE)
    step(net, optimizer, 0)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = preconditioner(tmp_path, net)
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        root = (state["exp_avg_sq"] / (1 - 0.999)).sqrt()
        torch.testing.assert_close(found[name], 1 / (root + 1e-8))


def test_state_by_names_is_read_too(tmp_path: Path) -> None:
    net = tinies.model("llama")
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    step(net, optimizer, 0)
    names = [name for name, _ in net.named_parameters()]
    saved = optimizer.state_dict()
    saved["state"] = {f"module.{names[key]}": value for key, value in saved["state"].items()}
    saved["param_groups"][0]["params"] = [f"module.{name}" for name in names]
    torch.save(saved, tmp_path / "optimizer.bin")
    found = preconditioner(tmp_path, net)
    assert found.keys() == set(names)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no optimizer.pt"),
        (lambda path: (path / "optimizer.pt").write_bytes(b"torn"), "cannot be read"),
        (lambda path: torch.save([1], path / "optimizer.pt"), "no optimizer state"),
        (
            lambda path: torch.save(
                torch.optim.SGD(tinies.model("llama").parameters(), lr=1).state_dict(),
                path / "optimizer.pt",
            ),
            "does not fit",
        ),
    ],
)
def test_without_a_fitting_state_the_reason_is_said(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path)
    with pytest.raises(NoStateError, match=reason):
        preconditioner(tmp_path, tinies.model("llama"))
