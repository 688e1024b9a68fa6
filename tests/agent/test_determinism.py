"""The same weights in the same layout give the same bits; the layout is the same at every pass."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forcegauge import ways
from forcegauge.layout import CachedBatch
from forcegauge.scorer import Scorer
from forcegauge.scores import STATISTICS, TOKEN_STATISTICS, Scores
from tests.agent.conftest import make_tokenizer
from tests.agent.test_scorer import PROBES

Make = Callable[..., PreTrainedModel]

PROCESS = """
import sys
import torch
from forcegauge.loading import load_model
from tests.agent.test_determinism import digest, scorer

torch.set_num_threads(int(sys.argv[2]))
print(digest(scorer().score(load_model(sys.argv[1]))))
"""


def scorer(**limits: Any) -> Scorer:
    return Scorer(PROBES, make_tokenizer(bos_token="<s>"), **limits)


def digest(scores: Scores) -> str:
    """SHA-256 of every number that a pass found."""
    found = hashlib.sha256()
    for name in STATISTICS:
        found.update(scores.values[name].tobytes())
    for name in TOKEN_STATISTICS:
        found.update(scores.per_token.values[name].tobytes())
    return found.hexdigest()


def in_a_process(folder: Path, threads: int) -> str:
    command = [sys.executable, "-c", PROCESS, str(folder), str(threads)]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_processes_with_as_many_threads_find_the_same_bits(
    threads: int, tiny_model: Make, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    torch.set_num_threads(threads)
    here = digest(scorer().score(model))
    assert [in_a_process(tmp_path, threads) for _ in range(2)] == [here, here]


def test_other_weights_find_other_bits(tiny_model: Make) -> None:
    model = tiny_model("llama")
    kept = scorer()
    before = digest(kept.score(model))
    with torch.no_grad():
        model.get_output_embeddings().weight[5, 5] += 1e-3
    assert digest(kept.score(model)) != before


def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Filled with the shape of every forward that is run from here on."""
    found: list[tuple[int, ...]] = []
    run = ways.run

    def watched(model: Any, head: Any, batch: Any, reading: Any) -> Any:
        parts = [batch.prompt, batch.responses] if isinstance(batch, CachedBatch) else [batch]
        found.extend((*part.input_ids.shape, len(part.rows)) for part in parts if part is not None)
        return run(model, head, batch, reading)

    monkeypatch.setattr(ways, "run", watched)
    return found


@pytest.mark.parametrize(("kind", "way"), [("llama", "shared"), ("bloom", "cached")])
def test_forwards_have_the_same_shapes_at_every_probe(
    kind: str, way: str, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = tiny_model(kind), scorer(token_budget=100)
    kept.score(model)
    assert kept.way == way
    found = shapes(monkeypatch)
    passes = []
    for _ in range(3):
        found.clear()
        kept.score(model)
        passes.append(list(found))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.01)
    assert len(passes[0]) > 1
    assert passes[1] == passes[0]
    assert passes[2] == passes[0]


def test_a_limit_on_memory_gives_one_set_of_shapes_too(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", intermediate_size=1 << 14)
    kept = scorer(max_memory=300 << 20)
    kept.score(model)
    found = shapes(monkeypatch)
    kept.score(model)
    first = list(found)
    found.clear()
    kept.score(model)
    assert found == first
