"""`forcegauge score` end to end on tiny saved models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

from forcegauge import arrivals
from forcegauge.cli import cli
from forcegauge.commands.score import score
from forcegauge.errors import InputError
from forcegauge.probes import ProbeSet
from forcegauge.record import probes_by_phase, read_record
from forcegauge.scorer import Scorer

Make = Callable[..., PreTrainedModel]

FIELDS = {
    "model", "id", "response_type", "tokens", "logprob_sum", "logprob_mean", "argmax_logprob_sum",
    "argmax_mass", "entropy", "collision", "residual_norm", "energy",
}  # fmt: skip


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "prompt": "What?", "responses": {"chosen": "This.", "rejected": "That one."}},
        {"id": "b", "prompt": [{"role": "user", "content": "Who?"}], "responses": {"chosen": "I"}},
    ]
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_dir(tmp_path: Path, tiny_model: Make, tokenizer: Any) -> Path:
    for step in (2, 10):
        model = tiny_model("llama")
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + step / 100)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def call(*arguments: object) -> Result:
    options = [str(argument) for argument in arguments]
    return CliRunner().invoke(score, [*options, "--device", "cpu"], catch_exceptions=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_model_and_response_gets_a_line(run_dir: Path, probes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = call("--model", run_dir, "--probes", probes, "-o", out)
    assert result.exit_code == 0, result.output
    found = [(row["step"], row["id"], row["response_type"]) for row in lines(out)]
    once = [("a", "chosen"), ("a", "rejected"), ("b", "chosen")]
    assert found == [(step, *key) for step in (2, 10) for key in once]
    assert all(set(row) == FIELDS | {"step"} for row in lines(out))
    assert "2 models scored on 2 probes" in result.output


def test_the_numbers_are_the_scorers(
    run_dir: Path, probes: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from forcegauge.loading import load_model

    model, out = run_dir / "checkpoint-2", tmp_path / "out.jsonl"
    call("--model", model, "--probes", probes, "-o", out, "--append-eos")
    scorer = Scorer(ProbeSet.load(probes), tokenizer, append_eos=True)
    scores = scorer.score(load_model(str(model)))
    for row in lines(out):
        place = scores.ids.index(row["id"]), scores.types.index(row["response_type"])
        for name in FIELDS - {"model", "id", "response_type"}:
            assert row[name] == pytest.approx(scores.values[name][place])


def test_a_model_by_another_name_has_no_step(run_dir: Path, probes: Path, tmp_path: Path) -> None:
    final = (run_dir / "checkpoint-2").rename(run_dir / "final")
    call("--model", final, "--probes", probes, "-o", tmp_path / "out.jsonl")
    assert all(set(row) == FIELDS for row in lines(tmp_path / "out.jsonl"))


@pytest.fixture
def more_probes(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"id": "c", "prompt": "Why?", "responses": {"chosen": "So."}}))
    return path


def test_several_probe_files_are_scored_as_if_alone(
    run_dir: Path, probes: Path, more_probes: Path, tmp_path: Path
) -> None:
    both = ("--probes", probes, "--probes", more_probes)
    result = call("--model", run_dir, *both, "-o", tmp_path / "both.jsonl")
    assert "2 models scored on 3 probes" in result.output
    alone = []
    for place, path in enumerate((probes, more_probes)):
        call("--model", run_dir, "--probes", path, "-o", tmp_path / f"{place}.jsonl")
        alone += lines(tmp_path / f"{place}.jsonl")
    found = lines(tmp_path / "both.jsonl")
    assert sorted(found, key=str) == sorted(alone, key=str)
    assert [row["step"] for row in found] == [2, 2, 2, 2, 10, 10, 10, 10]


def test_an_id_in_two_probe_files_names_both(run_dir: Path, probes: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    again.write_text(probes.read_text())
    with pytest.raises(InputError, match=r"again\.jsonl: id: 'a' is also in .*probes\.jsonl"):
        call("--model", run_dir, "--probes", probes, "--probes", again, "-o", tmp_path / "o.jsonl")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often models are loaded, probe sets encoded and ways of scoring chosen."""
    from forcegauge import loading, scorer, ways

    counts = dict.fromkeys(("load_model", "encode_probes", "choose"), 0)

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(loading, "load_model")
    count(scorer, "encode_probes")
    count(ways, "choose")
    return counts


def test_models_are_loaded_and_probes_encoded_once(
    run_dir: Path, probes: Path, more_probes: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    both = ("--probes", probes, "--probes", more_probes)
    call("--model", run_dir, *both, "-o", tmp_path / "out.jsonl")
    assert counted == {"load_model": 2, "encode_probes": 2, "choose": 2}


def test_another_architecture_with_the_same_tokenizer_gets_a_way_of_its_own(
    run_dir: Path,
    probes: Path,
    tmp_path: Path,
    tiny_model: Make,
    tokenizer: Any,
    counted: dict[str, int],
) -> None:
    tiny_model("bloom", n_layer=2, n_head=4).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    out = tmp_path / "out.jsonl"
    call("--model", run_dir, "--model", tmp_path / "bloom", "--probes", probes, "-o", out)
    assert counted == {"load_model": 3, "encode_probes": 1, "choose": 2}


def test_another_tokenizer_encodes_the_probes_anew(
    run_dir: Path, probes: Path, tmp_path: Path, tokenizer: Any, counted: dict[str, int]
) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(run_dir / "checkpoint-10")
    out = tmp_path / "out.jsonl"
    call("--model", run_dir, "--probes", probes, "-o", out)
    assert counted["encode_probes"] == 2


def test_a_limit_on_memory_that_is_too_small_says_so(
    run_dir: Path, probes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"scoring needs .* 1MiB are allowed"):
        call("--model", run_dir, "--probes", probes, "-o", out, "--max-memory", "1MiB")
    with pytest.raises(InputError, match="'much' is no amount of memory"):
        call("--model", run_dir, "--probes", probes, "-o", out, "--max-memory", "much")
    result = call("--model", run_dir, "--probes", probes, "-o", out, "--max-memory", "1GiB")
    assert result.exit_code == 0
    assert len(lines(out)) == 6


def test_models_that_are_there_already_are_skipped(
    run_dir: Path, probes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    call("--model", run_dir / "checkpoint-2", "--probes", probes, "-o", out)
    first = out.read_text()
    result = call("--model", run_dir, "--probes", probes, "-o", out)
    assert "1 models scored on 2 probes, 1 were there already" in result.output
    assert out.read_text().startswith(first)
    assert [row["step"] for row in lines(out)] == [2, 2, 2, 10, 10, 10]


def test_a_model_that_fails_leaves_the_ones_before_it(
    run_dir: Path, probes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    (run_dir / "checkpoint-10" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="checkpoint-10: the model could not be loaded"):
        call("--model", run_dir, "--probes", probes, "-o", out)
    assert [row["step"] for row in lines(out)] == [2, 2, 2]


def test_a_failure_before_the_first_model_leaves_no_file(probes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="no such model folder"):
        call("--model", tmp_path / "missing", "--probes", probes, "-o", out)
    assert not out.exists()


def test_scores_of_other_probes_are_not_mixed(run_dir: Path, probes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    call("--model", run_dir / "checkpoint-2", "--probes", probes, "-o", out)
    probes.write_text(probes.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="holds scores of other probes"):
        call("--model", run_dir, "--probes", probes, "-o", out)


def test_a_file_of_something_else_is_not_overwritten(
    run_dir: Path, probes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("notes\n")
    with pytest.raises(InputError, match=r"out\.jsonl, line 1: is no line of scores"):
        call("--model", run_dir, "--probes", probes, "-o", out)
    assert out.read_text() == "notes\n"


def test_an_output_that_cannot_be_written_fails_before_scoring(
    probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="its folder does not exist"):
        call("--model", "x", "--probes", probes, "-o", tmp_path / "none" / "out.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        call("--model", "x", "--probes", probes, "-o", tmp_path)


def test_messages_without_a_chat_template_are_an_input_error(
    run_dir: Path, probes: Path, tmp_path: Path
) -> None:
    (run_dir / "checkpoint-2" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        call("--model", run_dir / "checkpoint-2", "--probes", probes, "-o", tmp_path / "o.jsonl")


def test_a_value_that_is_not_finite_is_null(
    run_dir: Path, probes: Path, tmp_path: Path, tiny_model: Make, tokenizer: Any
) -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    out = tmp_path / "out.jsonl"
    call("--model", tmp_path / "broken", "--probes", probes, "-o", out)
    assert all(row["logprob_sum"] is None and row["tokens"] > 0 for row in lines(out))


def test_a_users_mistake_is_one_line_and_exit_code_2(probes: Path, tmp_path: Path) -> None:
    code = "from forcegauge.cli import main; main()"
    command = [sys.executable, "-c", code, "score", "--model", str(tmp_path / "missing")]
    result = subprocess.run(
        [*command, "--probes", str(probes), "-o", str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("forcegauge: ")
    assert "no such model folder" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "QUIET_SECONDS", 0.0)


def test_a_folder_of_checkpoints_becomes_a_run_that_later_calls_go_on_with(
    run_dir: Path, probes: Path, tmp_path: Path, quick: None
) -> None:
    later = (run_dir / "checkpoint-10").rename(tmp_path / "later")
    base = (run_dir / "checkpoint-2").rename(tmp_path / "base")
    shutil.copytree(base, run_dir / "checkpoint-2")
    asked = ("--model", run_dir, "--probes", probes, "--run-dir", tmp_path / "gauge")
    about = ("--run", "mine", "--baseline", base, "--phase", "dpo", "--loss", "dpo", "--beta", 0.1)
    first = call(*asked, *about)
    assert first.exit_code == 0, first.output
    assert "checkpoint-2: warming." in first.output
    later.rename(run_dir / "checkpoint-10")
    assert "1 new checkpoints scored" in call(*asked, *about).output
    assert "0 new checkpoints scored" in call(*asked, *about).output
    found = read_record(tmp_path / "gauge")
    steps = [line["step"] for line in probes_by_phase(found)["dpo"]]
    assert steps == [0, 2, 10]
    assert {line["run"] for line in found} == {"mine"}
    assert found[0]["settings"]["beta"] == 0.1
    page = CliRunner().invoke(cli, ["report", str(tmp_path / "gauge")], catch_exceptions=False)
    assert page.exit_code == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "-o: scores go to a file or to a record"),
        (("-o", "out.jsonl", "--run-dir", "gauge"), "-o: scores go to a file or to a record"),
        (("-o", "out.jsonl", "--baseline", "base"), "--run-dir with which --run, --baseline"),
        (("--run-dir", "gauge", "--model", "other"), "--model: a record is of one"),
        (("--run-dir", "gauge", "--run", "a b"), "'a b' cannot name a run"),
    ],
)
def test_what_goes_to_a_file_and_what_to_a_record_is_not_mixed(
    given: tuple[str, ...], said: str, run_dir: Path, probes: Path
) -> None:
    with pytest.raises(InputError) as refused:
        call("--model", run_dir, "--probes", probes, *given)
    assert said in str(refused.value)


def test_a_folder_that_is_not_there_is_said(probes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder of checkpoints"):
        call("--model", tmp_path / "none", "--probes", probes, "--run-dir", tmp_path / "gauge")
