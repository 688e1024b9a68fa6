"""`forcegauge pairs` end to end on tiny saved models."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forcegauge import pairs as measured
from forcegauge import pairs_file
from forcegauge.cli import main
from forcegauge.pairs import PairMeter, PairValues, TokenPair

Make = Callable[..., PreTrainedModel]
Run = Callable[..., tuple[int, str, str]]

MEASURED = {"id", "model", "hash", *PairValues.__dataclass_fields__}
WORDS = ("tea is hot", "cats nap all day", "the sun sets", "rain falls", "bread bakes", "we walk")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `forcegauge pairs ...` in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        options = ["--device", "cpu"] if "--help" not in arguments else []
        monkeypatch.setattr("sys.argv", ["forcegauge", "pairs", *arguments, *options])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


@pytest.fixture
def model(tmp_path: Path, tiny_model: Make, tokenizer: Any) -> str:
    tiny_model("llama", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return "model"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def row(i: int) -> dict[str, Any]:
    answers = {"chosen": WORDS[i % 6], "rejected": f"{WORDS[(i + 1) % 6]} {i}"}
    return {"prompt": f"what of {i}?", **answers}


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", [row(i) for i in range(30)])


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """About four pairs are measured at a time."""
    monkeypatch.setattr(measured, "TOKEN_BUDGET", 160)


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_pair_gets_a_line_in_the_order_of_entanglement(
    run: Run, model: str, dataset: str
) -> None:
    code, out, _ = run(dataset, "--model", model, "-o", "out.jsonl")
    rows = lines("out.jsonl")
    assert code == 0
    assert sorted(row["id"] for row in rows) == sorted(f"line-{i + 1}" for i in range(30))
    assert all(set(row) == MEASURED | {"rank"} for row in rows)
    assert [row["rank"] for row in rows] == list(range(1, 31))
    found = [row["entanglement"] for row in rows]
    assert found == sorted(found, reverse=True)
    over = sum(value > 1 for value in found)
    assert f"Entanglement is above 1 in {over} of 30 pairs ({over / 30:.1%})" in out


def test_the_numbers_are_the_meters(
    run: Run, model: str, dataset: str, tiny_model: Make, tokenizer: Any
) -> None:
    run(dataset, "--model", model, "-o", "out.jsonl", "--max-response-tokens", "7")
    prompt, chosen, rejected = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("what of 3?", WORDS[3][:7], WORDS[4][:7])
    )
    pair = TokenPair(prompt, chosen, rejected)
    (expected,) = PairMeter(tiny_model("llama", num_hidden_layers=1), [pair]).measure([pair])
    found = next(row for row in lines("out.jsonl") if row["id"] == "line-4")
    for name, value in vars(expected).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_a_near_copy_is_ranked_above_different_answers(
    run: Run, model: str, tmp_path: Path
) -> None:
    copy = {"prompt": "what?", "chosen": "bread bakes slowly.", "rejected": "bread bakes slowly!"}
    write(tmp_path / "train.jsonl", [row(0), row(1), copy, row(2)])
    run("train.jsonl", "--model", model, "-o", "out.jsonl")
    assert lines("out.jsonl")[0]["id"] == "line-3"


def test_the_table_shows_both_ends_in_80_columns(run: Run, model: str, dataset: str) -> None:
    _, out, _ = run(dataset, "--model", model, "-o", "out.jsonl", "--top", "2")
    table = out.split("out.jsonl: ")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    ranks = [line.split()[0] for line in table]
    assert ranks == ["rank", "1", "2", "...", "29", "30"]
    assert "26 more" in table[3]


def test_a_short_ranking_is_shown_once(run: Run, model: str, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [row(0), row(1), row(2)])
    _, out, _ = run("train.jsonl", "--model", model, "-o", "out.jsonl", "--top", "2")
    assert [line.split()[0] for line in out.splitlines()[:5]] == ["rank", "1", "2", "...", "3"]


def test_texts_do_not_act_on_the_terminal_or_the_page(run: Run, model: str, tmp_path: Path) -> None:
    bad = {"prompt": "<img src=x>", "chosen": "\x1b[2J[red]x", "rejected": "<script>go()</script>"}
    write(tmp_path / "train.jsonl", [bad, row(1)])
    _, out, _ = run("train.jsonl", "--model", model, "-o", "out.jsonl")
    page = Path("out.html").read_text()
    assert "\x1b" not in out + page
    assert r"\x1b[2J[red]x" in out
    assert "&lt;script&gt;go()&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page


def test_the_page_stands_alone_and_tells_the_ranking(run: Run, model: str, dataset: str) -> None:
    run(dataset, "--model", model, "-o", "out.jsonl", "--top", "3")
    page = Path("out.html").read_text()
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    ends = [*lines("out.jsonl")[:3], *lines("out.jsonl")[-3:]]
    assert all(page.count(f'<th scope="row"><bdi>{row["id"]}</bdi>') == 1 for row in ends)
    assert page.count('<th scope="row">') == 6
    assert '<svg class="histogram"' in page


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("size", [0, 1, 3, 900, 2000])
def test_a_cut_file_is_continued_as_if_nothing_had_happened(
    size: int, run: Run, model: str, dataset: str
) -> None:
    run(dataset, "--model", model, "-o", "whole.jsonl")
    run(dataset, "--model", model, "-o", "out.jsonl")
    whole = Path("whole.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:size])
    there = whole[:size].count(b"\n")
    code, out, _ = run(dataset, "--model", model, "-o", "out.jsonl")
    assert code == 0
    assert Path("out.jsonl").read_bytes() == whole
    assert (f"{there} of them were there already" in out) == (there > 0)


@pytest.mark.usefixtures("small_windows")
def test_an_interrupted_call_is_continued_where_it_stopped(
    run: Run, model: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataset, "--model", model, "-o", "whole.jsonl")
    measure, calls = PairMeter.measure, []

    def interrupted(self: PairMeter, pairs: Sequence[TokenPair]) -> Iterator[PairValues]:
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, pairs)

    monkeypatch.setattr(PairMeter, "measure", interrupted)
    code, _, told = run(dataset, "--model", model, "-o", "out.jsonl")
    assert (code, "out.jsonl keeps what was measured: call again" in told) == (130, True)
    kept = len(lines("out.jsonl"))
    assert kept == sum(calls[:2]) > 0
    code, out, _ = run(dataset, "--model", model, "-o", "out.jsonl")
    assert (code, sum(calls[3:])) == (0, 30 - kept)
    assert f"{kept} of them were there already" in out
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.usefixtures("small_windows")
def test_what_is_continued_is_measured_in_the_same_company(
    run: Run, model: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = PairMeter.measure, []

    def watched(self: PairMeter, pairs: Sequence[TokenPair]) -> Iterator[PairValues]:
        calls.append(tuple(pairs))
        return measure(self, pairs)

    monkeypatch.setattr(PairMeter, "measure", watched)
    run(dataset, "--model", model, "-o", "out.jsonl")
    first = tuple(calls)
    kept = [line for line in Path("out.jsonl").read_text().splitlines() if '"line-1"' not in line]
    Path("out.jsonl").write_text("\n".join(kept) + "\n")
    run(dataset, "--model", model, "-o", "out.jsonl")
    assert len(first[0]) > 1
    assert calls[len(first) :] == [first[0]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["other.jsonl", "--model", "model"], "of another dataset"),
        (["train.jsonl", "--model", "twin"], "holds pairs measured with model"),
        (["train.jsonl", "--model", "model", "--max-prompt-tokens", "3"], "weights or settings"),
        (["train.jsonl", "--model", "model", "--dtype", "bfloat16"], "weights or settings"),
    ],
)
def test_rankings_of_other_things_are_not_mixed(
    options: list[str], problem: str, run: Run, model: str, dataset: str, tmp_path: Path
) -> None:
    run(dataset, "--model", model, "-o", "out.jsonl")
    before = Path("out.jsonl").read_bytes()
    write(tmp_path / "other.jsonl", [{**row(i), "prompt": "why?"} for i in range(30)])
    Path("twin").symlink_to("model")
    code, _, err = run(*options, "-o", "out.jsonl")
    assert code == 2
    assert problem in err
    assert Path("out.jsonl").read_bytes() == before


def test_a_model_that_was_trained_meanwhile_is_another_model(
    run: Run, model: str, dataset: str, tiny_model: Make
) -> None:
    run(dataset, "--model", model, "-o", "out.jsonl")
    trained = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        trained.get_output_embeddings().weight.mul_(1.01)
    trained.save_pretrained("model")
    code, _, err = run(dataset, "--model", model, "-o", "out.jsonl")
    assert code == 2
    assert "with other weights or settings" in err


@pytest.mark.parametrize("text", ["my notes", "my notes\n", "{}\n", '{"id": "x"}\n', "[1]\n"])
def test_a_file_of_something_else_is_not_touched(
    text: str, run: Run, model: str, dataset: str
) -> None:
    Path("out.jsonl").write_text(text)
    code, _, err = run(dataset, "--model", model, "-o", "out.jsonl")
    assert code == 2
    assert "out.jsonl, line 1: is no line of a ranking" in err
    assert Path("out.jsonl").read_text() == text


def test_the_dataset_itself_is_not_overwritten(run: Run, dataset: str) -> None:
    before = Path(dataset).read_text()
    code, _, err = run(dataset, "--model", "none", "-o", dataset)
    assert code == 2
    assert "is the dataset itself" in err
    assert Path(dataset).read_text() == before


def test_the_ranking_and_its_page_cannot_be_one_file(run: Run, dataset: str) -> None:
    code, _, err = run(dataset, "--model", "none", "-o", "out.html")
    assert code == 2
    assert "out.html: is where the page goes" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{broken\n", "bad.jsonl, line 1: bad JSON"),
        ('{"prompt": "a", "text": "b"}\n', "bad.jsonl, line 1: has no chosen"),
        ("", "bad.jsonl: holds no rows"),
        ('{"prompt": "a", "completion": "b"}\n', "bad.jsonl: no row has a rejected answer"),
    ],
)
def test_a_malformed_dataset_is_one_line_and_exit_code_2(
    text: str, problem: str, run: Run, model: str
) -> None:
    Path("bad.jsonl").write_text(text)
    code, out, err = run("bad.jsonl", "--model", model, "-o", "out.jsonl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"forcegauge: {problem}")
    assert not Path("out.jsonl").exists()


def test_a_missing_model_is_one_line_and_exit_code_2(run: Run, dataset: str) -> None:
    code, _, err = run(dataset, "--model", "./none", "-o", "out.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "no such model folder" in err


def test_rows_that_cannot_be_measured_are_left_out_and_told(
    run: Run, model: str, tmp_path: Path
) -> None:
    long = {**row(3), "chosen": "x" * 300}
    write(tmp_path / "train.jsonl", [row(0), long, row(1), {**row(2), "chosen": " "}])
    code, out, _ = run("train.jsonl", "--model", model, "-o", "out.jsonl")
    assert code == 0
    assert {row["id"] for row in lines("out.jsonl")} == {"line-1", "line-3"}
    assert "1 of 4 rows, over 256 tokens, the model's context (first: line-2)." in out
    assert "1 of 4 rows, chosen is only white space (first: line-4)." in out
    assert "over 256 tokens" in Path("out.html").read_text()


def test_no_pair_short_enough_is_an_input_error(run: Run, model: str, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{**row(3), "chosen": "x" * 300}])
    code, _, err = run("train.jsonl", "--model", model, "-o", "out.jsonl")
    assert code == 2
    assert "no pair can be measured: over 256 tokens" in err
    assert "--max-response-tokens" in err


def test_a_value_that_is_not_finite_is_null_and_last(
    run: Run, dataset: str, tiny_model: Make, tokenizer: Any
) -> None:
    broken = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        seven = tokenizer("7")["input_ids"][-1]
        next(broken.get_input_embeddings().parameters())[seven] = torch.nan
    broken.save_pretrained("broken")
    tokenizer.save_pretrained("broken")
    code, out, _ = run(dataset, "--model", "broken", "-o", "out.jsonl")
    assert code == 0
    unknown = [row["id"] for row in lines("out.jsonl") if row["entanglement"] is None]
    assert unknown == ["line-8", "line-18", "line-28"]
    assert [row["id"] for row in lines("out.jsonl")[-3:]] == unknown
    assert "of 27 pairs" in out


def test_without_an_output_the_ranking_lies_here_under_the_datasets_name(
    run: Run, model: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "prefs.jsonl", [row(0), row(1)])
    run("data/prefs.jsonl", "--model", model)
    assert Path("prefs.ranked.jsonl").exists()
    assert Path("prefs.ranked.html").exists()


@pytest.mark.usefixtures("small_windows")
def test_two_thousand_pairs_take_no_more_memory_than_a_few(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.jsonl", [row(i) for i in range(2000)])
    monkeypatch.setattr(measured, "TOKEN_BUDGET", 1600)
    add, calls, python, tensors = pairs_file.add_rows, [], [], []

    def watched(path: str, rows: Any) -> None:
        calls.append(path)
        if len(calls) in (5, 40):
            gc.collect()
            python.append(tracemalloc.get_traced_memory()[0])
            alive = [item for item in gc.get_objects() if type(item) is torch.Tensor]
            tensors.append(sum(item.numel() for item in alive))
        elif len(calls) == 4:
            tracemalloc.start()
        add(path, rows)

    monkeypatch.setattr(pairs_file, "add_rows", watched)
    try:
        assert run("train.jsonl", "--model", model, "-o", "out.jsonl")[0] == 0
    finally:
        tracemalloc.stop()
    assert len(lines("out.jsonl")) == 2000
    assert tensors[1] <= 1.5 * tensors[0]
    assert python[1] - python[0] < 200_000
