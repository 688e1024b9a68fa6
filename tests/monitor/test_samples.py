"""Training files become rows with the weights that the loss gives their tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcegauge.errors import InputError
from forcegauge_monitor.entk.samples import Loss, read_samples
from tests import tiny


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [{"prompt": "hi ", "chosen": f"yes {c}", "rejected": f"no no {c}"} for c in "abcdef"]


def test_a_pair_is_two_rows_of_one_sample(tmp_path: Path) -> None:
    samples = read_samples(written(tmp_path, PAIRS), tiny.tokenizer(), Loss("dpo"))
    assert samples.sides == ("chosen", "rejected")
    assert [(row.probe, row.type) for row in samples.sequences[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert samples.text(1) == "no no a"
    assert samples.sequences[0].response[-1] == tiny.tokenizer().eos_token_id


def test_sft_on_a_preference_file_trains_the_chosen_answers(tmp_path: Path) -> None:
    samples = read_samples(written(tmp_path, PAIRS), tiny.tokenizer(), Loss("sft"), limit=3)
    assert samples.sides == ("completion",)
    assert [samples.text(row) for row in range(3)] == ["yes a", "yes c", "yes e"]


def test_a_pair_loss_needs_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "hi ", "completion": "yes"}])
    with pytest.raises(InputError, match="needs pairs"):
        read_samples(path, tiny.tokenizer(), Loss("ipo"))


def test_a_policy_loss_needs_advantages_and_names_the_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "hi ", "completion": "yes", "advantage": 1.5},
        {"prompt": "hi ", "completion": "no"},
    ]
    with pytest.raises(InputError, match="line 2: advantage"):
        read_samples(written(tmp_path, rows), tiny.tokenizer(), Loss("grpo"))
    rows[1]["advantage"] = -1
    samples = read_samples(written(tmp_path, rows), tiny.tokenizer(), Loss("grpo"))
    assert samples.advantages == (1.5, -1.0)


def test_an_unknown_loss_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="--loss"):
        Loss("gradient_magic")


def objective(loss: Callable[[list[Tensor]], Tensor], rows: list[Tensor]) -> list[Tensor]:
    """w_t = -dL/dlog pi(y_t) by autograd."""
    leaves = [row.clone().requires_grad_() for row in rows]
    return [-grad for grad in torch.autograd.grad(loss(leaves), leaves)]


ROWS = [-torch.rand(5) * 3, -torch.rand(7) * 3]
REFERENCE = [-torch.rand(5) * 3, -torch.rand(7) * 3]


def total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def ratio(rows: list[Tensor]) -> Tensor:
    return (rows[0] - REFERENCE[0]).sum() - (rows[1] - REFERENCE[1]).sum()


LOSSES: dict[str, tuple[Loss, Callable[[list[Tensor]], Tensor]]] = {
    "sft": (Loss("sft"), lambda rows: -total(row.mean() for row in rows)),
    "dpo": (Loss("dpo", 0.3), lambda rows: -torch.nn.functional.logsigmoid(0.3 * ratio(rows))),
    "simpo": (
        Loss("simpo", 2.0),
        lambda rows: -torch.nn.functional.logsigmoid(2.0 * (rows[0].mean() - rows[1].mean()) - 0.5),
    ),
    "grpo": (
        Loss("grpo"),
        lambda rows: (
            -total(
                a * (row - row.detach()).exp().mean()
                for a, row in zip((2.0, -1.0), rows, strict=True)
            )
        ),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_the_losss_own_gradient(name: str) -> None:
    loss, function = LOSSES[name]
    found = loss.weights(ROWS, REFERENCE, (2.0, -1.0))
    for got, wanted in zip(found, objective(function, ROWS), strict=True):
        torch.testing.assert_close(got, wanted)


def test_without_a_reference_the_weights_are_those_of_the_first_step() -> None:
    chosen, rejected = Loss("dpo", 0.4).weights(ROWS, None, None)
    assert torch.equal(chosen, torch.full((5,), 0.2))
    assert torch.equal(rejected, torch.full((7,), -0.2))
