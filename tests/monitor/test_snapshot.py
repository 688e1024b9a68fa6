"""Snapshots: cut in any way they give the same numbers, and a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcegauge.errors import InputError, RunError
from forcegauge.loading import load_model
from forcegauge_monitor import job as jobs
from forcegauge_monitor.entk.attribution import attribute
from forcegauge_monitor.entk.pieces import Piece, read_piece
from forcegauge_monitor.entk.rows import make_batches
from forcegauge_monitor.job import Job, Settings
from forcegauge_monitor.results import merge, merged_attribution, row_weights
from forcegauge_monitor.snapshot import take
from forcegauge_monitor.worker import Worker
from tests import tiny
from tests.monitor import tinies


def settings(inputs: dict[str, str], **changes: Any) -> Settings:
    named: dict[str, Any] = {name: inputs[name] for name in ("checkpoint", "probes", "train")}
    named |= {"loss": "dpo", "kernel_probes": 2, "seeds": 2}
    return Settings(**named | changes)


def cut(job: Job, groups: int, blocks: int, rows: int) -> Job:
    """The same job, cut into more pieces."""
    types, names = job.types, [name for block in job.plan.blocks for name in block]
    size = -(-len(types) // groups)
    step = -(-len(names) // blocks)
    parts = tuple(tuple(names[start : start + step]) for start in range(0, len(names), step))
    job.__dict__["plan"] = replace(
        job.plan,
        groups=tuple(types[start : start + size] for start in range(0, len(types), size)),
        blocks=parts,
        kernel_blocks=parts,
        rows=8,
        slice_rows=rows,
    )
    return job


def table(job: Job) -> Tensor:
    """The attribution of a job whose pieces are done in a strange order, by several workers."""
    job.start()
    workers = [Worker(job), Worker(job)]
    for stage in job.missing():
        for place, piece in enumerate(reversed(stage)):
            workers[place % 2].run(piece)
    return merged_attribution(job).raw


@pytest.mark.parametrize(("groups", "blocks", "rows"), [(2, 1, 8), (1, 3, 16), (4, 2, 8)])
def test_split_in_pieces_and_merged_the_numbers_are_the_same(
    inputs: dict[str, str], tmp_path: Path, groups: int, blocks: int, rows: int
) -> None:
    chosen = settings(inputs, kernel_probes=0)
    whole = table(cut(Job(chosen, tmp_path / "whole"), 1, 1, 64))
    parts = table(cut(Job(chosen, tmp_path / "parts"), groups, blocks, rows))
    assert float(whole.abs().min()) > 0
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))


def test_workers_in_any_order_give_the_same_bits(inputs: dict[str, str], tmp_path: Path) -> None:
    chosen = settings(inputs, previous=inputs["previous"], reference=inputs["previous"])
    take(Job(chosen, tmp_path / "one"))
    job = Job(chosen, tmp_path / "many")
    table(job)
    merge(job)
    for name in ("attribution", "kernel", "changes"):
        one, many = (read_piece(tmp_path / n / f"{name}.safetensors") for n in ("one", "many"))
        assert one.keys() == many.keys()
        assert all(torch.equal(*map(torch.nan_to_num, (one[n], many[n]))) for n in one)


def test_no_stage_waits_for_one_long_piece(inputs: dict[str, str], tmp_path: Path) -> None:
    job = cut(Job(settings(inputs, reference=inputs["previous"]), tmp_path), 1, 1, 8)
    for stage in job.stages():
        assert max(piece.cost for piece in stage) < sum(piece.cost for piece in stage) / 3


def test_attribution_is_the_effect_of_a_step_on_each_response_type(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    job = Job(settings(inputs, kernel_probes=0), tmp_path)
    found = table(job)
    net = load_model(inputs["checkpoint"])
    item, place = job.samples.sequences[3], 3
    weight = row_weights(job)[place]
    torch.testing.assert_close(weight, torch.full_like(weight, -0.05))
    step = tinies.gradient(net, item, weight)
    rate, sides = 2e-4, []
    for way in (rate, -2 * rate):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.add_(way * step[name])
        sides.append(measured(net, job))
    change = (sides[0] - sides[1]) / (2 * rate)
    torch.testing.assert_close(found[:, place], change, rtol=0.02, atol=1e-2)


def measured(net: torch.nn.Module, job: Job) -> Tensor:
    """Mean over probes of per-token mean log-probs, by response type."""
    with torch.no_grad():
        scores = [float(tinies.logprobs(net, item).double().mean()) for item in job.probes]
    places = torch.tensor([item.type for item in job.probes])
    return torch.stack(
        [torch.tensor(scores)[places == place].double().mean() for place in range(len(job.types))]
    )


def test_a_killed_snapshot_goes_on_and_loses_one_piece_at_most(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    chosen = settings(inputs)
    take(Job(chosen, tmp_path / "whole"))
    ran: list[str] = []

    def dies(piece: Piece, done: float) -> None:
        if (tmp_path / "killed" / "work" / f"{piece.name}.safetensors").exists():
            ran.append(piece.name)
        if len(ran) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(Job(chosen, tmp_path / "killed"), dies)
    again: list[str] = []
    take(Job(chosen, tmp_path / "killed"), lambda piece, done: again.append(piece.name))
    assert not set(ran) & set(again)
    for name in ("attribution", "kernel"):
        one = read_piece(tmp_path / "whole" / f"{name}.safetensors")
        other = read_piece(tmp_path / "killed" / f"{name}.safetensors")
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, other[key], equal_nan=True)


def test_a_torn_piece_is_never_taken_for_a_finished_one(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(settings(inputs, kernel_probes=0), tmp_path)
    job.start()
    piece = job.stages()[0][0]

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("forcegauge_monitor.entk.pieces.save_file", torn)
    with pytest.raises(RunError, match="disk full"):
        Worker(job).run(piece)
    assert piece in job.missing()[0]
    assert [path.name for path in job.work.iterdir()] == ["job.json"]


def test_other_inputs_do_not_continue_a_snapshot(inputs: dict[str, str], tmp_path: Path) -> None:
    first = Job(settings(inputs, kernel_probes=0), tmp_path)
    first.start()
    Worker(first).run(first.stages()[0][0])
    assert len(first.missing()[0]) == len(first.stages()[0]) - 1
    other = Job(settings(inputs, kernel_probes=0, beta=0.5), tmp_path)
    other.start()
    assert other.missing() == other.stages()
    take(other)
    with pytest.raises(InputError, match="other inputs"):
        take(Job(settings(inputs, kernel_probes=0), tmp_path))


def test_a_finished_snapshot_is_not_done_again(inputs: dict[str, str], tmp_path: Path) -> None:
    chosen = settings(inputs, kernel_probes=0)
    metrics = take(Job(chosen, tmp_path))
    calls: list[str] = []
    assert take(Job(chosen, tmp_path), lambda piece, done: calls.append(piece.name)) == metrics
    assert not calls
    assert not (tmp_path / "work").exists()


def test_validity_and_stability_against_an_earlier_snapshot(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    earlier = {"checkpoint": inputs["previous"]}
    take(Job(settings(inputs, **earlier), tmp_path / "one"))
    metrics = take(Job(settings(inputs, previous=str(tmp_path / "one")), tmp_path / "two"))
    assert metrics["prediction_r2_ratio"] > 0.9
    assert metrics["prediction"]["slope"] == pytest.approx(1, abs=0.1)
    assert metrics["predicted_change_nats"]["chosen"] == pytest.approx(
        metrics["measured_change_nats"]["chosen"], abs=0.01
    )
    assert metrics["entk_alignment_ratio"] > 0.9
    assert 0 < metrics["stability"]["previous"]["velocity"] < 0.5
    third = take(Job(settings(inputs, previous=str(tmp_path / "two")), tmp_path / "three"))
    assert third["stability"]["first"] == metrics["stability"]["first"]
    assert third["stability"]["previous"]["velocity"] == 0
    assert [each["step"] for each in third["history"]] == [1, 2, 2]
    aligned = [1.0, metrics["entk_alignment_ratio"], third["entk_alignment_ratio"]]
    assert [each["alignment_first"] for each in third["history"]] == aligned


def test_kernel_metrics_have_their_control(inputs: dict[str, str], tmp_path: Path) -> None:
    metrics = take(Job(settings(inputs, seeds=6), tmp_path))
    assert set(metrics["entk_norm"]["other_prompt"]) == {"chosen", "rejected"}
    assert 0.5 < metrics["entk_head_control_ratio"] < 1.5
    assert metrics["entk_norm_error"]["chosen"]["chosen"] > 0


def test_without_optimizer_state_the_reason_is_in_the_metrics(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    metrics = take(Job(settings(inputs, kernel_probes=0), tmp_path))
    assert "attribution_adam_nats" not in metrics
    assert metrics["adam"] == "the checkpoint holds no optimizer.pt nor a sharded state"


def test_pushers_are_named_with_their_texts(inputs: dict[str, str], tmp_path: Path) -> None:
    take(Job(settings(inputs, kernel_probes=0), tmp_path))
    found = json.loads((tmp_path / "pushers.json").read_text())["chosen"]
    values = [each["nats"] for each in found["down"]]
    assert len(values) == 5
    assert values == sorted(values)
    assert all(each["nats"] > 0 for each in found["up"])
    worst = found["down"][0]
    assert worst["prompt"].startswith("what of")
    total = sum(side["nats"] for side in worst["sides"].values())
    assert worst["nats"] == pytest.approx(total)


def test_too_little_memory_is_said_before_the_start(inputs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="of this model needs"):
        Job(settings(inputs, memory=1 << 20), tmp_path).start()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda inputs: {"max_response_tokens": None, "train": inputs["probes"]}, "no row|has no"),
        (lambda inputs: {"checkpoint": inputs["checkpoint"] + "0"}, "no such model folder"),
        (lambda inputs: {"previous": inputs["previous"] + "0"}, "no such model folder"),
        (lambda inputs: {"reference": inputs["previous"] + "0"}, "no such model folder"),
    ],
)
def test_users_mistakes_are_input_errors(
    inputs: dict[str, str],
    tmp_path: Path,
    change: Callable[[dict[str, str]], dict[str, Any]],
    match: str,
) -> None:
    with pytest.raises(InputError, match=match):
        Job(settings(inputs, **change(inputs)), tmp_path)


def test_an_unfinished_snapshot_is_no_earlier_one(inputs: dict[str, str], tmp_path: Path) -> None:
    Job(settings(inputs), tmp_path / "one").start()
    with pytest.raises(InputError, match="this snapshot is not finished"):
        Job(settings(inputs, previous=str(tmp_path / "one")), tmp_path / "two")


def test_a_previous_checkpoint_of_another_model_is_refused_before_the_start(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    tiny.llama(layers=1).save_pretrained(tmp_path / "other")
    job = Job(settings(inputs, previous=str(tmp_path / "other")), tmp_path / "s")
    with pytest.raises(InputError, match="do not train the same weights"):
        job.start()


def test_the_plan_of_a_folder_is_kept(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Job(settings(inputs), tmp_path)
    first.start()
    monkeypatch.setattr(jobs, "make_plan", lambda *_: pytest.fail("planned again"))
    assert Job(settings(inputs, memory=1 << 40), tmp_path).plan == first.plan


def test_rows_are_attributed_in_their_own_order() -> None:
    net = tinies.model("llama")
    items = tinies.sequences(9, seed=2)
    weights = tinies.weights(items)
    directions = {name: torch.randn(1, *p.shape) for name, p in net.named_parameters()}
    together = attribute(net, make_batches(items, 4), weights, directions)
    alone = [attribute(net, make_batches([i], 1), [w], directions)[0] for i, w in zip(
        items, weights, strict=True)]  # fmt: skip
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
