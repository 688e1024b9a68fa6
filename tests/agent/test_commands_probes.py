"""`forcegauge probes build | check | show` as a user meets them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forcegauge.cli import main
from forcegauge.probes import Probe, ProbeSet

Run = Callable[..., tuple[int, str, str]]

MESSAGES = ({"role": "user", "content": "Why?"},)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `forcegauge probes ...` in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["forcegauge", "probes", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twenty preference rows; the chosen answer of line 3 is empty."""
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"yes it is {i}", "rejected": f"no not {i}"}
        for i in range(20)
    ]
    rows[2]["chosen"] = ""
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save(*probes: Probe) -> str:
    ProbeSet(probes).save("probes.jsonl")
    return "probes.jsonl"


def plain(name: str = "p1", prompt: Any = "Why?", **responses: str) -> Probe:
    return Probe(name, prompt, {"chosen": "Because.", **responses})


def test_build_writes_a_probe_set_and_says_what_is_in_it(run: Run, dataset: Path) -> None:
    code, out, err = run("build", "train.jsonl", "-o", "p.jsonl", "--n", "8", "--held-out", "0.2")
    probe_set = ProbeSet.load("p.jsonl")
    assert (code, err, len(probe_set)) == (0, "", 8)
    assert probe_set.types == (
        "chosen", "rejected", "other_prompt", "unseen_prompt", "shuffled", "random_words"
    )  # fmt: skip
    assert f"p.jsonl: 8 probes, hash {probe_set.hash[:12]}" in out
    assert "Left out: 1 of 20 rows, chosen is empty (first: line-3)." in out
    assert "Held out: train on the first 16 of 20 rows only." in out


def test_build_asks_no_prompt_that_it_holds_out(run: Run, dataset: Path) -> None:
    run("build", "train.jsonl", "-o", "p.jsonl", "--held-out", "0.5")
    probes = ProbeSet.load("p.jsonl").probes
    assert {str(probe.prompt) for probe in probes} <= {f"Question {i}?" for i in range(10)}
    assert {p.responses["unseen_prompt"] for p in probes} <= {
        f"yes it is {i}" for i in range(10, 20)
    }


def test_build_gives_the_same_bytes_for_the_same_seed(run: Run, dataset: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        run("build", "train.jsonl", "-o", f"{name}.jsonl", "--seed", seed, "--n", "8")
    a, b, c = (Path(f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_build_takes_held_out_prompts_from_a_file(run: Run, dataset: Path) -> None:
    row = {"prompt": "New?", "chosen": "something new", "rejected": "old"}
    Path("new.jsonl").write_text(json.dumps(row))
    run("build", "train.jsonl", "-o", "p.jsonl", "--held-out", "new.jsonl")
    texts = {probe.responses["unseen_prompt"] for probe in ProbeSet.load("p.jsonl").probes}
    assert texts == {"something new"}


def test_build_takes_held_out_prompts_from_another_split(
    run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("data").mkdir()
    dataset.rename("data/train.jsonl")
    row = {"prompt": "New?", "chosen": "something new", "rejected": "old"}
    Path("data/test.jsonl").write_text(json.dumps(row))
    code, _, _ = run("build", "data", "-o", "p.jsonl", "--held-out", "test")
    texts = {probe.responses["unseen_prompt"] for probe in ProbeSet.load("p.jsonl").probes}
    assert (code, texts) == (0, {"something new"})


def test_build_says_that_hallucination_pressure_needs_held_out_prompts(
    run: Run, dataset: Path
) -> None:
    assert "--held-out gives the prompts" in run("build", "train.jsonl", "-o", "p.jsonl")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.jsonl", "-o", "p.jsonl"], "none.jsonl: no such file"),
        (["train.jsonl", "-o", "train.jsonl"], "train.jsonl: --output: is the dataset itself"),
        (["train.jsonl", "-o", "none/p.jsonl"], "none/p.jsonl: its folder does not exist"),
        (["train.jsonl", "-o", "p.jsonl", "--held-out", "1.5"], "1.5 is not between 0 and 1"),
        (["train.jsonl", "-o", "p.jsonl", "--held-out", "nan"], "nan is not between 0 and 1"),
        (["train.jsonl", "-o", "p.jsonl", "--held-out", "0.01"], "leaves one part empty"),
        (["train.jsonl", "-o", "p.jsonl", "--held-out", "test"], "'test' is no file and no share"),
        (["train.jsonl", "-o", "p.jsonl", "--held-out", "no.csv"], "no.csv: no such file"),
        (["train.jsonl", "-o", "p.jsonl", "--split", "test"], "a file has no splits"),
        (["train.jsonl", "-o", "p.jsonl", "--rephrase-with", "./no"], "./no: no such model folder"),
    ],
)
def test_build_answers_a_mistake_with_one_line_and_exit_code_2(
    run: Run, dataset: Path, arguments: list[str], expected: str
) -> None:
    before = dataset.read_bytes()
    code, out, err = run("build", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert dataset.read_bytes() == before
    assert not Path("p.jsonl").exists()


def test_check_counts_words_without_a_tokenizer(run: Run) -> None:
    code, out, _ = run("check", save(plain(rejected="no no no"), plain("p2", prompt="Why not?")))
    table = {words[0]: words[1:] for line in out.splitlines()[2:5] if (words := line.split())}
    assert code == 0
    assert table == {
        "prompt": ["2", "1", "1", "2", "-"],
        "chosen": ["2", "1", "1", "1", "-"],
        "rejected": ["1", "3", "3", "3", "-"],
    }
    assert "Lengths are in words." in out


def test_check_counts_tokens_and_what_a_limit_cuts(
    run: Run, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained("tokenizer")
    Path("tokenizer/config.json").write_text(json.dumps({"model_type": "llama"}))
    file = save(plain(prompt=MESSAGES, rejected="No."))
    _, out, _ = run("check", file, "--tokenizer", "tokenizer", "--max-response-tokens", "4")
    template = str(len("[user] Why?\n[assistant] "))
    table = {words[0]: words[1:] for line in out.splitlines()[2:5] if (words := line.split())}
    assert table == {
        "prompt": ["1", template, template, template, "-"],
        "chosen": ["1", "8", "8", "8", "1"],
        "rejected": ["1", "3", "3", "3", "-"],
    }
    assert "Lengths are in tokens." in out


def test_check_lists_what_is_doubtful(run: Run) -> None:
    probes = (
        plain("a", rejected="Because. "),
        plain("b", prompt="Why?"),
        plain("c", prompt=(*MESSAGES, {"role": "assistant", "content": "Hm"})),
    )
    code, out, err = run("check", save(*probes))
    assert (code, err) == (0, "")
    assert "warning: line 1: rejected is the same text as chosen\n" in out
    assert "warning: line 2: the prompt is the same as on line 1\n" in out
    assert "warning: line 3: the prompt ends with an assistant message" in out
    assert "warning: no probe has chosen_rephrase, " in out


@pytest.fixture
def small_context(tiny_model: Callable[..., PreTrainedModel]) -> Callable[[Any], str]:
    """Saves a tokenizer beside a model whose context is 16 tokens."""

    def make(tokenizer: PreTrainedTokenizerFast) -> str:
        tokenizer.save_pretrained("model")
        tiny_model("llama", max_position_embeddings=16).config.save_pretrained("model")
        return "model"

    return make


def test_check_refuses_a_prompt_longer_than_the_context(
    run: Run, tokenizer: PreTrainedTokenizerFast, small_context: Callable[[Any], str]
) -> None:
    file, model = save(plain("a"), plain("b", prompt="x" * 20)), small_context(tokenizer)
    code, out, err = run("check", file, "--tokenizer", model)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("forcegauge: probes.jsonl, line 2: prompt: 20 tokens of prompt and 8 of")
    assert "model's context of 16" in err
    assert "chosen" in out
    limits = ("--max-prompt-tokens", "8", "--max-response-tokens", "8")
    assert run("check", file, "--tokenizer", model, *limits)[0] == 0


def test_check_names_the_first_probes_that_do_not_fit_and_counts_them(
    run: Run, tokenizer: PreTrainedTokenizerFast, small_context: Callable[[Any], str]
) -> None:
    file = save(*(plain(str(i), prompt=f"{i:020}") for i in range(30)))
    code, _, err = run("check", file, "--tokenizer", small_context(tokenizer))
    assert (code, err.count("\n")) == (2, 11)
    assert "probes.jsonl: 30 probes cannot be scored" in err.splitlines()[-1]


def test_check_says_when_messages_meet_a_tokenizer_without_chat_template(
    run: Run, tokenizer: PreTrainedTokenizerFast, small_context: Callable[[Any], str]
) -> None:
    tokenizer.chat_template = None
    file = save(plain("a"), plain("b", prompt=MESSAGES))
    code, out, err = run("check", file, "--tokenizer", small_context(tokenizer))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("forcegauge: probes.jsonl, line 2: prompt: ")
    assert "no chat template" in err


def test_check_says_when_there_is_no_tokenizer(run: Run) -> None:
    code, _, err = run("check", save(plain()), "--tokenizer", "./none")
    assert (code, err.count("\n")) == (2, 1)


def test_show_prints_prompt_and_responses_within_80_columns(run: Run) -> None:
    file = save(plain(prompt=MESSAGES, rejected_rephrase="word " * 40, rejected="x" * 200))
    code, out, _ = run("show", file)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("p1  (line 1)\n  user               Why?")
    assert "\n  rejected_rephrase  word word" in out
    assert out.count("x") == 200


def test_show_takes_ids_or_a_number(run: Run) -> None:
    file = save(*(plain(name) for name in "abcde"))
    headings = [[n for n in "abcde" if f"{n}  (line" in run("show", file, *more)[1]] for more in
                ([], ["-n", "1"], ["--id", "e", "--id", "b"])]  # fmt: skip
    assert headings == [["a", "b", "c"], ["a"], ["b", "e"]]
    assert "2 more: show them with -n 5" in run("show", file)[1]


def test_show_of_an_unknown_id_is_an_error(run: Run) -> None:
    code, _, err = run("show", save(plain()), "--id", "p9")
    assert code == 2
    assert "probes.jsonl: no probe has the id 'p9'. There are 1, such as 'p1'." in err


def test_show_prints_a_malicious_text_as_text(run: Run) -> None:
    evil = "\x1b[31mred [bold]b[/bold] [link=x]l[/link] \u202eback\rover\u200b\x9b2J end"
    out = run("show", save(plain("id\x1b]0;t\x07", prompt=evil)))[1]
    text = " ".join(out.split())
    assert r"\x1b[31mred [bold]b[/bold] [link=x]l[/link] \u202eback\rover\u200b\x9b2J end" in text
    assert r"id\x1b]0;t\x07 (line 1)" in text
    assert not {"\x1b", "\r", "\x9b", "\x07", "\u202e"} & set(out)


def test_show_leaves_other_scripts_and_joined_emoji_as_they_are(run: Run) -> None:
    assert "天空 👩\u200d🚀 é" in run("show", save(plain(prompt="天空 👩\u200d🚀 é")))[1]
