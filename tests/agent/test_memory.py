"""The memory of a pass: chosen from a limit, kept to, and not a matter of how many probes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from forcegauge import behaviour, greedy, ways
from forcegauge import budget as budgets
from forcegauge.encoding import TokenSequence
from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.layout import padded_batches, shared_batches
from forcegauge.probes import Probe, ProbeSet
from forcegauge.record import read_record
from forcegauge.scorer import Scorer
from forcegauge.ways import Way
from tests import tiny
from tests.agent.shapes import EVERY_WAY, few, make_sequences, shapes

Make = Callable[..., PreTrainedModel]

MIB = 1 << 20

WIDE = {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 1, "vocab_size": 4096}

MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from forcegauge.probes import Probe, ProbeSet
from forcegauge.scorer import Scorer
from tests.agent.conftest import make_tokenizer

torch.set_num_threads(1)
shape, count, limit = json.loads(sys.argv[1])
config = AutoConfig.for_model("llama", num_attention_heads=4, **shape)
model = AutoModelForCausalLM.from_config(config).eval()
responses = {name: name * 6 for name in ("chosen", "rejected", "unrelated", "shuffled")}
probes = ProbeSet(tuple(Probe(f"{n}", f"{n:03}" * 20, responses) for n in range(count)))
scorer = Scorer(probes, make_tokenizer(bos_token="<s>"), max_memory=limit)
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
scorer.score(model)
lines = Path("/proc/self/status").read_text().splitlines()
# not ru_maxrss: a forked process begins with its parent's
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 - before)
"""


def peak(count: int, limit: int | None) -> int:
    """Bytes that scoring so many probes adds at most to a process that holds the model."""
    command = [sys.executable, "-c", MEASURE, json.dumps([WIDE, count, limit])]
    # else glibc raises its thresholds as it goes and keeps what was freed: 13 MiB more or less
    fixed = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    environment = {**os.environ, **fixed}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux gives it")
def test_peak_memory_keeps_to_its_limit_and_is_flat_in_the_number_of_probes() -> None:
    limit = 120 * MIB
    few, many = peak(16, limit), peak(96, limit)
    assert max(few, many) < limit
    assert many - few < 0.1 * limit
    assert peak(16, None) > limit, "the limit must be one that binds"


PROBES = ProbeSet(
    tuple(
        Probe(f"p{n}", "prompt " * (n + 3), {"chosen": "yes " * n, "other_prompt": "no"})
        for n in range(1, 9)
    )
)


def test_a_limit_makes_smaller_forwards_and_changes_no_number(
    tiny_model: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", intermediate_size=1 << 14)
    free = Scorer(PROBES, tokenizer)
    wanted = free.score(model)
    widths: list[int] = []
    run = ways.run

    def watched(model: Any, head: Any, batch: Any, reading: Any) -> Any:
        widths.append(batch.tokens)
        return run(model, head, batch, reading)

    shape = budgets.shape_of(model)
    limit = max(budgets.cost(shape, batch, "head") for batch in shared_batches(free.sequences, 120))
    scorer = Scorer(PROBES, tokenizer, max_memory=limit)
    monkeypatch.setattr(ways, "run", watched)
    found = scorer.score(model)
    assert max(widths) <= 130
    torch.testing.assert_close(
        torch.from_numpy(found.per_token.values["logprob"]),
        torch.from_numpy(wanted.per_token.values["logprob"]),
        rtol=0,
        atol=1e-4,
    )


def test_layout_noise_keeps_to_the_limit_too(
    tiny_model: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", intermediate_size=1 << 14)
    shape = budgets.shape_of(model)
    scorer = Scorer(PROBES, tokenizer)
    limit = max(
        budgets.cost(shape, batch, "head") for batch in shared_batches(scorer.sequences, 150)
    )
    costs: list[int] = []
    run = ways.run

    def watched(model: Any, head: Any, batch: Any, reading: Any) -> Any:
        costs.append(budgets.cost(shape, batch, reading))
        return run(model, head, batch, reading)

    monkeypatch.setattr(ways, "run", watched)
    Scorer(PROBES, tokenizer, max_memory=limit).noise(model)
    assert max(costs) <= limit


def test_too_small_a_limit_names_what_is_needed(tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("llama")
    said = r"max_memory: scoring needs \d+MiB above the weights and 1MiB are allowed"
    with pytest.raises(InputError, match=said):
        Scorer(PROBES, tokenizer, max_memory=MIB).score(model)


def test_what_is_named_as_needed_is_enough(tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("llama", intermediate_size=1 << 14)
    with pytest.raises(InputError) as refused:
        Scorer(PROBES, tokenizer, max_memory=MIB).score(model)
    needed = str(refused.value).split("needs ")[1].split(" above")[0]
    Scorer(PROBES, tokenizer, max_memory=budgets.parse_bytes(needed)).score(model)


def test_without_a_limit_the_token_budget_stands(tiny_model: Make, tokenizer: Any) -> None:
    sequences = Scorer(PROBES, tokenizer).sequences
    assert ways.tokens_of(tiny_model("llama"), "shared", "head", sequences, 4096, None) == 4096


@pytest.mark.parametrize("way", EVERY_WAY)
@few
@given(
    shape=shapes(),
    limit=st.integers(1, 400),
)
def test_no_forward_costs_more_than_the_limit(
    way: Way, shape: list[tuple[int, list[int]]], limit: int, tiny_model: Make
) -> None:
    sequences = make_sequences(shape)
    model = budgets.shape_of(tiny_model("llama", intermediate_size=1 << 14))
    forwards = partial(ways.batches, way, sequences)
    least = max(budgets.cost(model, batch, "head") for batch in forwards(1))
    if least > limit * MIB:
        with pytest.raises(budgets.BudgetError, match=budgets.readable(least)):
            budgets.largest(model, forwards, "head", 4096, limit * MIB)
    else:
        tokens = budgets.largest(model, forwards, "head", 4096, limit * MIB)
        assert max(budgets.cost(model, batch, "head") for batch in forwards(tokens)) <= limit * MIB


def test_whole_logits_cost_their_size(tiny_model: Make) -> None:
    model = budgets.shape_of(tiny_model("llama", vocab_size=100_000))
    (batch,) = padded_batches([TokenSequence(0, 0, (3,) * 1000, (4,) * 100)], 2000)
    costs = {reading: budgets.cost(model, batch, reading) for reading in ("head", "rows", "logits")}
    assert costs["rows"] - costs["head"] >= 100 * 100_000 * 4
    assert costs["logits"] >= 1100 * 100_000 * 4


def test_the_shape_is_the_models(tiny_model: Make) -> None:
    shape = budgets.shape_of(tiny_model("llama"))
    assert (shape.hidden, shape.widest, shape.queries, shape.keys) == (32, 64, 32, 16)
    assert (shape.layers, shape.vocabulary, shape.size, shape.whole) == (2, 270, 4, False)
    assert budgets.shape_of(tiny_model("gpt2").bfloat16()).size == 2
    assert budgets.shape_of(tiny_model("gpt2")).widest == 128, "its inner width has no own name"


def test_the_widest_matrix_is_known_where_weights_are_sharded(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model("llama")
    whole = budgets.shape_of(model)
    for part in model.modules():
        if isinstance(part, nn.Linear) and part is not model.get_output_embeddings():
            part.weight = nn.Parameter(torch.empty(0))
    assert budgets.shape_of(model).widest == whole.widest


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 gib", 3 << 29), ("64k", 64_000), ("7", 7)],
)
def test_amounts_of_memory_are_read(text: str, count: int) -> None:
    assert budgets.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "2GiBs", "-1GB", "0", "1.2.3MB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no amount of memory"):
        budgets.parse_bytes(text)


def watched(directory: Path, **options: Any) -> ForceGauge:
    return ForceGauge(
        tiny.probe_set(12),
        tiny.tokenizer(),
        directory=directory,
        every=1,
        budget=None,
        port=0,
        **options,
    )


def test_a_limit_for_a_gauge_is_read_like_the_commands(tmp_path: Path) -> None:
    with watched(tmp_path, max_memory="2GiB") as gauge:
        gauge.step(tiny.llama(), 0)
    assert not gauge.failures
    with pytest.raises(InputError, match="is no amount of memory"):
        watched(tmp_path, max_memory="much")


def test_a_limit_that_nothing_keeps_to_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, max_memory=1) as gauge:
        gauge.step(tiny.llama(), 0)
    assert gauge.failures == {"scoring": 1}
    assert "above the weights and 1MiB are allowed" in caplog.text


@pytest.mark.parametrize("share", [1, 1 << 40])
def test_a_share_of_what_is_free_bounds_a_probe_and_refuses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    asked = []

    def free(device: torch.device) -> int:
        asked.append(device)
        return share

    monkeypatch.setattr(budgets, "free_share", free)
    limits = []
    choose = ways.choose

    def chosen(model: Any, sequences: Any, budget: int, limit: int | None, *more: Any) -> Any:
        limits.append(limit)
        return choose(model, sequences, budget, limit, *more)

    monkeypatch.setattr(ways, "choose", chosen)
    with watched(tmp_path) as gauge:
        for step in range(3):
            gauge.step(tiny.llama(), step)
    assert not gauge.failures
    assert len(asked) == len(limits) == 1, "decided once"
    assert share <= (limits[0] or 0) < max(share + 1, 1 << 30)


def test_on_a_cpu_nothing_bounds_a_probe_unless_told() -> None:
    assert budgets.free_share(torch.device("cpu")) is None


def test_out_of_memory_never_reaches_the_trainer_and_the_next_probe_takes_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tried = ways.run, []

    def short(model: Any, head: Any, batch: Any, reading: Any) -> Any:
        tried.append(batch.tokens)
        if batch.tokens > 300:
            raise torch.OutOfMemoryError("no memory today")
        return run(model, head, batch, reading)

    monkeypatch.setattr(ways, "run", short)
    with watched(tmp_path) as gauge:
        for step in range(7):
            gauge.step(tiny.llama(), step)
    assert gauge.failures == {"out_of_memory": 4}
    assert [n for n in tried if n > 300] == sorted((n for n in tried if n > 300), reverse=True)
    assert [line["step"] for line in read_record(tmp_path) if line["kind"] == "probe"] == [4, 5, 6]


def test_out_of_memory_in_greedy_decoding_costs_no_scores_and_decodes_fewer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, rows = greedy.greedy_decode, []

    def short(model: Any, prompts: Any, **how: Any) -> Any:
        rows.append(len(prompts))
        if len(prompts) > 4:
            raise torch.OutOfMemoryError("no memory today")
        return decode(model, prompts, **how)

    monkeypatch.setattr(behaviour, "greedy_decode", short)
    with watched(tmp_path) as gauge:
        for step in range(3):
            gauge.step(tiny.llama(), step)
    assert gauge.failures == {"out_of_memory": 2}
    assert rows == [12, 8, 4, 4, 4]
    lines = [line for line in read_record(tmp_path) if line["kind"] == "probe"]
    assert ["greedy_repetition_ratio" in line["signals"] for line in lines] == [False, False, True]


def test_decoding_keeps_to_a_limit_and_says_the_same(tiny_model: Make) -> None:
    shape = budgets.shape_of(tiny_model("llama", intermediate_size=1 << 14))
    most = budgets.decoding_rows(shape, 100, 16, 1 << 40)
    few = budgets.decoding_rows(shape, 100, 16, 256 * MIB)
    assert most == 16
    assert 1 < few < 16
    assert budgets.decoding_rows(shape, 100, 16, 1) == 1
    model, told = tiny.llama().eval(), behaviour.Behaviour(tiny.probe_set(6), tiny.tokenizer())
    with torch.no_grad():
        assert told.decode(model, 2) == told.decode(model, 16)
