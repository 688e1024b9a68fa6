"""Heads that are spread over processes by vocabulary: the same numbers as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forcegauge.loading import load_model
from forcegauge.scorer import Scorer
from forcegauge.scores import STATISTICS
from forcegauge.vocabulary import shard_of
from tests.agent.conftest import make_tokenizer
from tests.agent.test_scorer import PROBES

PROCESS = """
import json, os, sys
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from forcegauge.scorer import Scorer
from forcegauge.vocabulary import VocabularyShard, shard_of
from tests.agent.conftest import make_tokenizer
from tests.agent.test_scorer import PROBES

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
widths = []
gathered = VocabularyShard._gathered
def watched(shard, mine):
    widths.append(mine.shape[1])
    return gathered(shard, mine)
VocabularyShard._gathered = watched
for name, plan in json.loads(sys.argv[2]).items():
    model = AutoModelForCausalLM.from_pretrained(
        folder / name, distributed_config=DistributedConfig(tp_size=2, tp_plan=plan)
    ).eval()
    scorer = Scorer(PROBES, make_tokenizer(bos_token="<s>"))
    scorer.score(model)
    widths.clear()
    values = scorer.score(model).values
    shard = shard_of(model.get_output_embeddings())
    facts = [shard.first, len(shard.weight)], [scorer.way, scorer.reading], sorted(set(widths))
    np.savez(folder / f"{name}-{rank}.npz", **values)
    (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))
dist.destroy_process_group()
"""

PLACE = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "PYTHONPATH": str(Path.cwd())}

CASES: dict[str, tuple[str, dict[str, Any], str | dict[str, str]]] = {
    "even": ("llama", {}, "auto"),
    "uneven": ("llama", {"vocab_size": 275}, "auto"),
    "tied": ("llama", {"tie_word_embeddings": True}, "auto"),
    "scaled": ("cohere", {"logit_scale": 0.25}, "auto"),
    "biased": ("phi", {}, "auto"),
    "logits in parts": ("llama", {}, {"lm_head": "colwise"}),
}
"""Kind of model, changes to it, and the plan by which transformers spreads it."""


def make(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 270,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    config = AutoConfig.for_model(kind, **shape | changes)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    head: Any = made.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return made


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case's model and what two processes found when they shared it."""
    folder = tmp_path_factory.mktemp("spread")
    for name, (kind, changes, _) in CASES.items():
        make(kind, changes).save_pretrained(folder / name)
    plans = json.dumps({name: plan for name, (_, _, plan) in CASES.items()})
    said = [folder / f"stderr-{rank}" for rank in range(2)]
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(folder), plans],
                env={**os.environ, **PLACE, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=stack.enter_context(said[rank].open("w")),
            )
            for rank in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        codes = [process.wait(300) for process in processes]
    assert codes == [0, 0], "".join(path.read_text() for path in said)
    return folder


def facts(spread: Path, name: str, rank: int) -> Any:
    return json.loads((spread / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_statistic_is_that_of_one_process(spread: Path, name: str) -> None:
    model = load_model(str(spread / name))
    wanted = Scorer(PROBES, make_tokenizer(bos_token="<s>")).score(model).values
    for rank in range(2):
        found = np.load(spread / f"{name}-{rank}.npz")
        for statistic in STATISTICS:
            np.testing.assert_allclose(
                found[statistic], wanted[statistic], rtol=1e-5, atol=1e-5, err_msg=statistic
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_vocabulary_is_split_and_logits_are_not_exchanged(spread: Path, name: str) -> None:
    vocabulary = 275 if name == "uneven" else 270
    half = -(-vocabulary // 2)
    parts = [facts(spread, name, rank)[0] for rank in range(2)]
    assert parts == [[0, half], [half, vocabulary - half]]
    for rank in range(2):
        _, chosen, widths = facts(spread, name, rank)
        assert chosen == ["shared", "head"]
        assert widths == [10], "numbers of a row that are exchanged"


@pytest.mark.slow
def test_all_processes_find_the_same_bits(spread: Path) -> None:
    for name in CASES:
        first, second = (np.load(spread / f"{name}-{rank}.npz") for rank in range(2))
        for statistic in STATISTICS:
            np.testing.assert_array_equal(first[statistic], second[statistic], err_msg=name)


@pytest.mark.parametrize("head", [None, nn.Linear(4, 6), nn.Embedding(4, 6)])
def test_a_head_in_one_process_is_no_shard(head: nn.Module | None) -> None:
    assert shard_of(head) is None
    assert torch.distributed.is_initialized() is False
