"""A, K and G formed explicitly, for models small enough (Ren & Sutherland, ICLR 2025, eq. 3).

One step of size eta on (x_u, y_u) changes the log-probs of all V outputs at x_o by
-eta A(x_o) K(x_o, x_u) G(x_u, y_u) + O(eta^2) with A = I - 1 pi^T, K = J_o J_u^T and
G = dL/dz = pi - e_y. Language models have too many logits for that; everything else in this package
is the same product without forming its factors. ``python -m forcegauge_monitor.entk.akg`` walks
through it on small pictures of digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

GLYPHS = (
    "01110100011001110101110011000101110",
    "00100011000010000100001000010001110",
    "01110100010000100010001000100011111",
    "11111000100010000010000011000101110",
    "00010001100101010010111110001000010",
    "11111100001111000001000011000101110",
    "00110010001000011110100011000101110",
    "11111000010001000100010000100001000",
    "01110100011000101110100011000101110",
    "01110100011000101111000010001001100",
)
"""Digits 0 to 9 as 7 rows of 5 pixels."""


@dataclass(frozen=True)
class Decomposition:
    """A [V, V], K [V, V] and G [V] of one observed and one updated input."""

    a: Tensor
    k: Tensor
    g: Tensor

    def change(self, rate: float) -> Tensor:
        """Predicted change of the V log-probs at the observed input, nats."""
        return -rate * (self.a @ self.k @ self.g)


def decompose(net: nn.Module, observed: Tensor, updated: Tensor, label: int) -> Decomposition:
    """A, K and G of a classifier whose forward gives [1, V] logits for one input."""
    point = {name: p.detach() for name, p in net.named_parameters()}
    one, other = (_jacobian(net, point, inputs) for inputs in (observed, updated))
    with torch.no_grad():
        pi, target = net(observed)[0].softmax(-1), net(updated)[0].softmax(-1)
    size = len(pi)
    a = torch.eye(size, dtype=pi.dtype) - torch.ones(size, 1, dtype=pi.dtype) * pi
    return Decomposition(a, one @ other.T, target - F.one_hot(torch.tensor(label), size))


def _jacobian(net: nn.Module, point: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    def logits(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(net, parameters, (inputs,))[0]
        return found

    blocks = jacrev(logits)(dict(point))
    return torch.cat([block.flatten(1) for block in blocks.values()], dim=1)


def digits(count: int, *, noise: float = 0.25, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy pictures [count, 35] of digits, and their labels [count], every digit in turn."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.tensor([[float(pixel) for pixel in glyph] for glyph in GLYPHS]).double()
    labels = torch.arange(count) % len(GLYPHS)
    shake = torch.randn(count, clean.shape[1], generator=draw, dtype=torch.float64)
    return clean[labels] + noise * shake, labels


def classifier(*, seed: int = 0) -> nn.Module:
    """A small network from pictures of `digits` to 10 logits, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(35, 32), nn.Tanh(), nn.Linear(32, len(GLYPHS))).double()


def train(net: nn.Module, inputs: Tensor, labels: Tensor, steps: int, rate: float = 0.5) -> None:
    """Plain gradient descent on the mean cross-entropy."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()


def walk(say: Callable[[str], object]) -> None:
    """Learn a 4 a little more and tell what that does to the digit most like it."""
    net = classifier()
    inputs, labels = digits(200)
    train(net, inputs, labels, steps=40)
    four = inputs[4:5]
    parts = [decompose(net, inputs[digit : digit + 1], four, label=4) for digit in range(10)]
    say(f"G = pi - e_4, what the loss asks of the 4's logits: {_row(parts[4].g)}")
    norms = torch.stack([part.k.norm() for part in parts])
    say(f"||K(digit, 4)||, how much of it reaches digits 0 to 9: {_row(norms)}")
    near = max((digit for digit in range(10) if digit != 4), key=lambda digit: float(norms[digit]))
    for rate in (0.1, 0.01, 0.001):
        measured = changes(net, inputs[near : near + 1], four, 4, rate)
        predicted = parts[near].change(rate)
        error = float((measured - predicted).norm() / predicted.norm())
        say(f"rate {rate}: log pi(4 | the {near}) predicted {float(predicted[4]):+.5f}, "
            f"measured {float(measured[4]):+.5f}, relative error {error:.4f}")  # fmt: skip


@torch.no_grad()
def changes(net: nn.Module, observed: Tensor, updated: Tensor, label: int, rate: float) -> Tensor:
    """Measured changes [V] of the log-probs at one input by one step on another; the network
    itself is left alone."""
    other = copy.deepcopy(net)
    with torch.enable_grad():
        train(other, updated, torch.tensor([label]), steps=1, rate=rate)
    found: Tensor = other(observed)[0].log_softmax(-1) - net(observed)[0].log_softmax(-1)
    return found


def _row(values: Tensor) -> str:
    return " ".join(f"{float(value):+.2f}" for value in values)


if __name__ == "__main__":
    import sys

    walk(lambda line: sys.stdout.write(line + "\n"))
