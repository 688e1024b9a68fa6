"""A malformed probe file is one clear line with file, line, field and fix, and exit code 2."""

import json
from pathlib import Path
from typing import Any

import pytest

from forcegauge.cli import main
from forcegauge.errors import InputError, RunError
from forcegauge.probes import RESPONSE_TYPES, Probe, ProbeSet, numbered_probes

GOOD = {"id": "p1", "prompt": "Why?", "responses": {"chosen": "Because.", "rejected": "No."}}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != key}).encode()


def prompt(*messages: Any) -> bytes:
    return line(prompt=list(messages))


USER = {"role": "user", "content": "Why?"}

MALFORMED: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b'{"id": "p1", ', "bad JSON ("),
    "two objects on a line": (line() + line(), "Extra data"),
    "single quotes": (b"{'id': 'p1'}", "bad JSON ("),
    "not an object": (b'["p1"]', "is a list, not a JSON object"),
    "null": (b"null", "is null, not a JSON object"),
    "a number with too many digits": (b'{"id": ' + b"1" * 5000 + b"}", "bad JSON"),
    "deep nesting": (b"[" * 200_000, "bad JSON (nested too deeply)"),
    "NaN": (line(prompt=float("nan")), "NaN is not JSON"),
    "duplicate key": (b'{"id": "p1", "id": "p2"}', "id: the key stands twice"),
    "unknown key": (line(rating=1), "rating: unknown key. Keys are id, prompt, responses"),
    "unprintable unknown key": (line(**{"a\nb": 1}), r"a\nb: unknown key"),
    "missing id": (without("id"), "id: is missing"),
    "id is a number": (line(id=7), "id: is a number, not text"),
    "id is empty": (line(id=""), "id: is empty"),
    "id is white space": (line(id=" "), "id: is only white space"),
    "missing prompt": (without("prompt"), "prompt: is missing"),
    "prompt is empty": (line(prompt=""), "prompt: is empty"),
    "prompt is white space": (line(prompt="\n "), "prompt: is only white space"),
    "prompt is an object": (line(prompt=USER), "prompt: is an object"),
    "prompt without messages": (prompt(), "prompt: is an empty list"),
    "message is text": (prompt("Why?"), "prompt[0]: is text, not a message"),
    "message without role": (prompt({"content": "Why?"}), "prompt[0].role: is missing"),
    "message without content": (prompt(USER, {"role": "user"}), "prompt[1].content: is missing"),
    "message with another key": (prompt({**USER, "name": "x"}), "prompt[0].name: unknown key"),
    "unknown role": (
        prompt({**USER, "role": "human"}),
        "prompt[0].role: unknown role 'human'. Roles are system, developer, user, assistant, tool",
    ),
    "message with empty content": (prompt({**USER, "content": ""}), "prompt[0].content: is empty"),
    "message with parts": (prompt({**USER, "content": []}), "prompt[0].content: is a list"),
    "missing responses": (without("responses"), "responses: is missing"),
    "responses is a list": (line(responses=["Because."]), "responses: is a list"),
    "no chosen": (line(responses={"rejected": "No."}), "responses.chosen: is missing"),
    "response is a number": (line(responses={"chosen": 1}), "responses.chosen: is a number"),
    "response is null": (line(responses={"chosen": None}), "responses.chosen: is null"),
    "response is empty": (line(responses={"chosen": ""}), "responses.chosen: is empty"),
    "response is white space": (
        line(responses={"chosen": "Because.", "rejected": " \n"}),
        "responses.rejected: is only white space",
    ),
    "unknown type": (
        line(responses={"chosen": "Because.", "best": "No."}),
        f"responses.best: unknown response type. Response types are {RESPONSE_TYPES[0]}, ",
    ),
    "greedy": (
        line(responses={"chosen": "Because.", "greedy": "No."}),
        "responses.greedy: cannot be given in a probe file. Remove it",
    ),
    "half a surrogate pair": (line(responses={"chosen": "\ud83d"}), "half a surrogate pair"),
    "NUL": (line(responses={"chosen": "a\0b"}), "holds a NUL character"),
    "raw control character": (b'{"id": "p\x01"}', "Invalid control character"),
    "Latin-1": (line(prompt="caf").replace(b"caf", b"caf\xe9"), "is not UTF-8 (byte 28 of the"),
    "duplicate id": (line(id="first"), "id: 'first' was already used on line 1"),
}


@pytest.fixture(params=MALFORMED, ids=str)
def malformed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A file whose third line is malformed, and what the error must say."""
    bad, expected = MALFORMED[request.param]
    path = tmp_path / "probes.jsonl"
    path.write_bytes(line(id="first") + b"\n" + line(id="second") + b"\n" + bad + b"\n")
    return path, f"{path}, line 3: ", expected


def test_a_malformed_line_is_named_with_file_line_field_and_fix(
    malformed: tuple[Path, str, str],
) -> None:
    path, place, expected = malformed
    with pytest.raises(InputError) as caught:
        ProbeSet.load(path)
    assert str(caught.value).startswith(place)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_line_ends_the_command_with_one_line_and_exit_code_2(
    malformed: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, place, expected = malformed
    monkeypatch.setattr("sys.argv", ["forcegauge", "probes", "check", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"forcegauge: {place}")
    assert expected in output.err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no probes"),
        (b"\n \n", "holds no probes"),
        (json.dumps(GOOD).encode("utf-16"), "line 1: is UTF-16, not UTF-8"),
        (json.dumps([GOOD], indent=1).encode(), "line 1: bad JSON"),
    ],
)
def test_a_file_without_probe_lines_says_so(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        ProbeSet.load(path)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    reasons = {
        str(tmp_path / "none.jsonl"): "no such file",
        str(tmp_path): "is a folder, not a file",
        str(loop): "cannot be read",
        "a\0b": "cannot be read",
    }
    for path, expected in reasons.items():
        with pytest.raises(InputError, match=expected):
            ProbeSet.load(path)


def test_a_byte_order_mark_blank_lines_and_carriage_returns_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(id="a") + b"\r\n\r\n" + line(id="b"))
    assert [(number, probe.id) for number, probe in numbered_probes(path)] == [(1, "a"), (3, "b")]


def test_other_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    probe = Probe("p", "one\u2028two\x85three", {"chosen": "a\nb"})
    ProbeSet((probe,)).save(tmp_path / "probes.jsonl")
    assert ProbeSet.load(tmp_path / "probes.jsonl").probes == (probe,)


def test_a_saved_set_loads_as_it_was(tmp_path: Path) -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wo?"})
    probes = ProbeSet(
        (
            Probe("b", messages, {"rejected": "No.", "chosen": "Här 中文 👩‍🚀"}),
            Probe("a", "Why?", {"chosen": " yes"}),
        )
    )
    probes.save(tmp_path / "probes.jsonl")
    assert ProbeSet.load(tmp_path / "probes.jsonl") == probes


def test_the_hash_is_that_of_the_canonical_json_sorted_by_id() -> None:
    a, b = Probe("a", "é", {"rejected": "n", "chosen": "y"}), Probe("b", "q", {"chosen": "y"})
    # sha256 of [{"id":"a","prompt":"é","responses":{"chosen":"y","rejected":"n"}},{"id":"b",...}]
    expected = "e0a011f1553b13e3dffb6342286a8075ca3d32c476b21b168b800e5c33259532"
    assert ProbeSet((b, a)).hash == ProbeSet((a, b)).hash == expected


def test_greedy_texts_are_part_of_neither_file_nor_hash(tmp_path: Path) -> None:
    plain = ProbeSet((Probe("a", "q", {"chosen": "y"}),))
    with_greedy = ProbeSet((Probe("a", "q", {"chosen": "y", "greedy": "g"}),))
    with_greedy.save(tmp_path / "probes.jsonl")
    assert with_greedy.hash == plain.hash
    assert ProbeSet.load(tmp_path / "probes.jsonl") == plain


def test_types_come_in_reading_order() -> None:
    probes = ProbeSet((Probe("a", "q", {"shuffled": "s", "rejected": "n", "chosen": "y"}),))
    assert probes.types == ("chosen", "rejected", "shuffled")


def test_saving_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    probes = ProbeSet((Probe("a", "q", {"chosen": "y"}),))
    with pytest.raises(InputError, match="its folder does not exist"):
        probes.save(tmp_path / "none" / "probes.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        probes.save(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(RunError, match="cannot be written \\(No space left on device\\)"):
        ProbeSet((Probe("a", "q", {"chosen": "y"}),)).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["probes.jsonl"]
    assert path.read_text() == "old"
