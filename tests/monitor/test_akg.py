"""A, K and G formed explicitly predict what a step on one digit does to another."""

from __future__ import annotations

import pytest
import torch

from forcegauge_monitor.entk import akg


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    net = akg.classifier()
    inputs, labels = akg.digits(100)
    akg.train(net, inputs, labels, steps=30)
    return net


def test_prediction_error_falls_with_the_rate(trained: torch.nn.Module) -> None:
    inputs, _ = akg.digits(20)
    nine, four = inputs[9:10], inputs[4:5]
    parts = akg.decompose(trained, nine, four, label=4)
    errors = []
    for rate in (1e-2, 1e-3, 1e-4):
        measured = akg.changes(trained, nine, four, 4, rate)
        errors.append(float((measured - parts.change(rate)).norm() / parts.change(rate).norm()))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 8


def test_only_the_centred_kernel_acts(trained: torch.nn.Module) -> None:
    inputs, _ = akg.digits(20)
    parts = akg.decompose(trained, inputs[9:10], inputs[4:5], label=4)
    centring = torch.eye(10, dtype=torch.float64) - 0.1
    within = akg.Decomposition(parts.a, centring @ parts.k @ centring, parts.g)
    torch.testing.assert_close(within.change(1.0), parts.change(1.0))
    assert not torch.allclose(within.k, parts.k)


def test_the_network_that_is_asked_stays_as_it_was(trained: torch.nn.Module) -> None:
    before = [parameter.clone() for parameter in trained.parameters()]
    inputs, _ = akg.digits(20)
    akg.changes(trained, inputs[:1], inputs[1:2], 1, rate=1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, trained.parameters(), strict=True))


def test_the_walk_tells_predicted_and_measured() -> None:
    lines: list[str] = []
    akg.walk(lines.append)
    assert [line.split(":")[0] for line in lines[2:]] == ["rate 0.1", "rate 0.01", "rate 0.001"]
    assert float(lines[-1].rsplit(" ", 1)[1]) < 0.002
