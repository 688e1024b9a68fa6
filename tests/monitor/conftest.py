"""Fixtures that several test files of the monitor share."""

from __future__ import annotations

import json

import pytest
import torch

from tests import tiny


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
