"""Datasets in the shapes that TRL documents, and rows that cannot be used."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trl.data_utils import extract_prompt

from forcegauge.errors import InputError
from forcegauge.pairs_input import Pair, Pairs, read_pairs

USER = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
PLAIN = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(tmp_path: Path, *rows: dict[str, Any]) -> Pairs:
    return read_pairs(jsonl(tmp_path / "data.jsonl", *rows))


def only(tmp_path: Path, row: dict[str, Any]) -> Pair:
    (pair,) = read(tmp_path, row).pairs
    return pair


def test_standard_preference_keeps_every_character(tmp_path: Path) -> None:
    pair = only(tmp_path, PLAIN)
    assert pair == Pair("line-1", 0, "The sky is", {"chosen": " blue.", "rejected": " green."})


def test_conversational_preference_takes_the_assistant_messages(tmp_path: Path) -> None:
    pair = only(tmp_path, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})
    assert pair.prompt == (USER,)
    assert pair.responses == {"chosen": "It is blue.", "rejected": "It is green."}


def test_an_implicit_prompt_is_what_both_conversations_begin_with(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, USER, GREEN, USER]
    pair = only(tmp_path, {"chosen": [*turns, BLUE], "rejected": [*turns, GREEN]})
    assert pair.prompt == tuple(turns)
    assert pair.responses == {"chosen": "It is blue.", "rejected": "It is green."}


def test_a_text_prompt_beside_whole_conversations_gives_way_to_theirs(tmp_path: Path) -> None:
    row = {"prompt": USER["content"], "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    assert only(tmp_path, row).prompt == (USER,)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Human: Why?\n\nAssistant: Yes", "Human: Why?\n\nAssistant: No"),
        ("The sky is black.", "The sky is blue."),
    ],
)
def test_an_implicit_text_prompt_is_cut_where_trl_cuts_it(
    tmp_path: Path, chosen: str, rejected: str
) -> None:
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    pair = only(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert {"prompt": pair.prompt, **pair.responses} == expected


def test_prompt_and_completion_are_an_sft_example(tmp_path: Path) -> None:
    plain = only(tmp_path, {"prompt": "The sky is", "completion": " blue."})
    assert (plain.prompt, plain.responses) == ("The sky is", {"chosen": " blue."})
    chat = only(tmp_path, {"prompt": [USER], "completion": [BLUE]})
    assert (chat.prompt, chat.responses) == ((USER,), {"chosen": "It is blue."})


def test_messages_ask_for_the_last_answer(tmp_path: Path) -> None:
    pair = only(tmp_path, {"messages": [USER, GREEN, USER, BLUE]})
    assert pair.prompt == (USER, GREEN, USER)
    assert pair.responses == {"chosen": "It is blue."}


def test_columns_of_other_types_are_taken_over(tmp_path: Path) -> None:
    extra = {"chosen_rephrase": "Blue.", "rejected_offtopic": [GREEN], "unrelated": None}
    responses = only(tmp_path, {**PLAIN, **extra, "score": 7, "shuffled": "mine"}).responses
    assert responses["chosen_rephrase"] == "Blue."
    assert responses["rejected_offtopic"] == "It is green."
    assert set(responses) == {"chosen", "rejected", "chosen_rephrase", "rejected_offtopic"}


UNUSABLE: dict[str, dict[str, Any]] = {
    "chosen is empty": {**PLAIN, "chosen": ""},
    "rejected is only white space": {**PLAIN, "rejected": " "},
    "chosen is null": {**PLAIN, "chosen": None},
    "prompt is empty": {"chosen": "Yes", "rejected": "No"},
    "chosen and rejected are the same": {**PLAIN, "rejected": " blue."},
    "chosen holds half a surrogate pair, which is no character": {**PLAIN, "chosen": "\ud83d"},
    "chosen does not end with one assistant message after the prompt": {
        "chosen": [USER, BLUE, USER, BLUE],
        "rejected": [USER, GREEN],
    },
    "messages does not end with one assistant message after the prompt": {"messages": [USER]},
    "messages has a message that is not only text": {
        "messages": [{"role": "user", "content": [{"type": "image"}]}, BLUE]
    },
    "the answer is labelled as not preferred": {"prompt": "a", "completion": "b", "label": False},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_row_that_cannot_be_a_probe_is_left_out_and_counted(tmp_path: Path, reason: str) -> None:
    found = read(tmp_path, PLAIN, UNUSABLE[reason], {**PLAIN, "prompt": "It is"})
    assert [pair.id for pair in found.pairs] == ["line-1", "line-3"]
    assert [pair.row for pair in found.pairs] == [0, 2]
    assert (found.rows, found.skipped) == (3, {reason: ("line-2",)})


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no shape": ({"text": "The sky is blue."}, "has no chosen, completion or messages (its co"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "rejected: is missing"),
    "prompt is a number": ({**PLAIN, "prompt": 1}, "prompt: is neither text nor a list"),
    "mixed forms": ({**PLAIN, "rejected": [GREEN]}, "rejected: is messages where the other col"),
    "mixed prompt": ({**PLAIN, "prompt": [USER]}, "chosen: is text where the other column is m"),
    "from and value": ({"messages": [{"from": "human", "value": "a"}]}, "messages: holds someth"),
    "unknown role": ({"messages": [{**USER, "role": "human"}]}, "messages: unknown role 'human'"),
    "messages is text": ({"messages": "Hi"}, "messages: is text"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_row_of_no_known_shape_is_named_with_file_and_line(tmp_path: Path, kind: str) -> None:
    row, expected = MALFORMED[kind]
    with pytest.raises(InputError) as caught:
        read(tmp_path, PLAIN, row)
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}, line 2: {expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "line 1: bad JSON"),
        ("\n[1]", "line 2: is not a JSON object"),
        ("", "holds no rows"),
        (json.dumps({**PLAIN, "chosen": ""}), "no row can be used: in the first, chosen is empty"),
    ],
)
def test_a_bad_json_file_says_what_is_wrong(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=expected):
        read_pairs(str(path))


def test_json_that_only_python_reads_is_taken_as_trainers_take_it(tmp_path: Path) -> None:
    assert only(tmp_path, {**PLAIN, "score": float("nan")}).chosen == " blue."


def test_csv_cells_may_hold_lines_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows([["prompt", "completion"], ["a,\nb", "c"], ["d", "e"]])
    pairs = read_pairs(str(path)).pairs
    assert [(p.id, p.prompt, p.chosen) for p in pairs] == [
        ("line-2", "a,\nb", "c"),
        ("line-4", "d", "e"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("prompt,completion\na,b,c\n", "line 2: has 3 cells, the header has 2"),
        ("prompt,prompt\na,b\n", "line 1: two columns have the same name"),
        ('prompt,completion\na,"b\n', "line 2: bad CSV"),
        ("question,answer\na,b\n", "line 2: has no chosen, completion or messages"),
        ("prompt,completion\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_bad_csv_is_named_with_file_and_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=expected):
        read_pairs(str(path))


def test_parquet_gives_the_same_pairs_as_json(tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    pairs = read_pairs(str(tmp_path / "data.parquet")).pairs
    assert [pair.id for pair in pairs] == ["row-1", "row-2", "row-3"]
    assert [pair.responses for pair in pairs] == [p.responses for p in read(tmp_path, *rows).pairs]


def test_bad_parquet_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_text("no table")
    with pytest.raises(InputError, match=r"data\.parquet: cannot be read as Parquet"):
        read_pairs(str(path))
    pq.write_table(pa.table({"prompt": ["a"], "chosen": [1], "rejected": ["c"]}), path)
    with pytest.raises(InputError, match=r"data\.parquet, row 1: chosen: is neither text"):
        read_pairs(str(path))


def test_a_missing_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package pyarrow\. pip install datasets"):
        read_pairs(str(tmp_path / "data.parquet"))
    with pytest.raises(InputError, match=r"needs the package datasets\. pip install datasets"):
        read_pairs("owner/name")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset folder as the Hub has them, with two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train.jsonl", PLAIN, {**PLAIN, "prompt": "It is"})
    jsonl(tmp_path / "data" / "test.jsonl", {**PLAIN, "prompt": "Now it is"})
    return str(tmp_path / "data")


def test_a_dataset_is_read_by_split(folder: str) -> None:
    assert [pair.id for pair in read_pairs(folder).pairs] == ["row-1", "row-2"]
    assert [pair.prompt for pair in read_pairs(folder, split="test").pairs] == ["Now it is"]


def test_a_dataset_that_cannot_be_loaded_is_one_clear_line(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r'cannot be loaded .*"validation"'):
        read_pairs(folder, split="validation")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"owner/name: cannot be loaded .* Check the name, the sp"):
        read_pairs("owner/name")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("none.jsonl", "none.jsonl: no such file"),
        ("none.csv", "none.csv: no such file"),
        ("none.parquet", "none.parquet: no such file"),
        ("some/where/data", "some/where/data: no such file"),
        ("", "no such file"),
    ],
)
def test_a_source_that_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected):
        read_pairs(source)


def test_a_file_of_another_kind_or_with_a_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(InputError, match=r"unknown kind of file '\.xlsx'"):
        read_pairs(str(tmp_path / "data.xlsx"))
    with pytest.raises(InputError, match="a file has no splits"):
        read_pairs(jsonl(tmp_path / "data.jsonl", PLAIN), split="test")
