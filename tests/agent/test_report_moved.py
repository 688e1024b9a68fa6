"""The drill-down of the report: the most moved probes, and what lies beside the run."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcegauge.record import open_record, read_record, read_scores
from forcegauge.report import write_report
from forcegauge.reporting.beside import PUSHING, beside_section
from forcegauge.reporting.moved import find_moved
from forcegauge.reporting.pieces import reader
from forcegauge.reporting.story import tell
from tests import tiny
from tests.agent.test_report import HOSTILE, Page, hostile
from tests.benchmarks.report import large_run

PROBES, TICKS = 60, 5


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_run(tmp_path_factory.mktemp("large"), PROBES, TICKS)


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def copied(source: Path, folder: Path, *names: str) -> Path:
    """A copy of a run with these of its files, by their paths in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def everything(source: Path) -> list[str]:
    return [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]


def tokens_of(html: str) -> list[dict[str, Any]]:
    """What the heat maps are drawn from."""
    found = re.search(r'id="details">([^<]*)</script>', html)
    assert found is not None
    unpacked: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return unpacked


def section(html: str) -> Page:
    return Page(html[html.index('id="moved"') - 30 : html.index("The latest probe in numbers")])


def test_fifty_probes_are_shown_the_most_moved_first(run_dir: Path, html: str) -> None:
    first, last = (read_scores(run_dir / "scores" / f"{step}.safetensors") for step in (0, 40))
    size = np.nanmean(np.abs(last.values["logprob_mean"] - first.values["logprob_mean"]), axis=1)
    wanted = [first.ids[row] for row in np.argsort(-size, kind="stable")[:50]]
    assert re.findall(r"<small>\d+ · <bdi>(p\d+)</bdi>", html) == wanted


def test_their_changes_stand_in_a_table(html: str) -> None:
    page = section(html)
    assert page.count("tr") == 51
    assert page.count("td") == 50 * 12


def test_their_texts_are_shown(html: str) -> None:
    text = section(html).text
    assert "What of pot 59?" in text
    assert "The pot stands in the sun" in text
    assert "(other_prompt)" in text


def test_every_token_has_its_change_and_where_the_mass_was_and_is(run_dir: Path, html: str) -> None:
    moved = find_moved(run_dir, tell(read_record(run_dir)))
    assert moved is not None
    answer = tokens_of(html)[0]["0"]
    row = moved.order[0]
    mine = (moved.latest.per_token.probe == row) & (moved.latest.per_token.type == 0)
    before, after = (
        each.per_token.values["logprob"][mine] for each in (moved.baseline, moved.latest)
    )
    np.testing.assert_allclose(answer["change"], 100 * (after - before), atol=0.5)
    np.testing.assert_allclose(answer["after"][0], 100 * np.exp(after), atol=0.5)
    assert len(answer["text"]) == len(answer["before"][1]) == 24


def test_the_argmax_has_no_mass_of_its_own_where_it_is_the_token(html: str) -> None:
    for answer in tokens_of(html)[0].values():
        for target, argmax in (answer["before"], answer["after"]):
            assert all(a + b <= 101 for a, b in zip(target, argmax, strict=True))


def test_without_texts_ids_and_numbers_of_tokens_are_shown(run_dir: Path, tmp_path: Path) -> None:
    names = [name for name in everything(run_dir) if name.startswith(("record", "scores/"))]
    kept = [name for name in names if "tokens" not in name]
    page = section(write_report(copied(run_dir, tmp_path, *kept)).read_text())
    assert "nats per token, 24 tokens" in page.text
    assert "What of pot" not in page.text
    assert "likeliest one" not in page.text


def test_a_record_alone_has_no_such_section(run_dir: Path, tmp_path: Path) -> None:
    page = write_report(copied(run_dir, tmp_path, "record.jsonl")).read_text()
    assert 'id="moved"' not in page
    assert 'id="details"></script>' in page


def test_a_damaged_file_of_scores_is_said_and_the_report_is_made(
    run_dir: Path, tmp_path: Path
) -> None:
    folder = copied(run_dir, tmp_path, *everything(run_dir))
    (folder / "scores" / "40.safetensors").write_bytes(b"torn")
    text = Page(write_report(folder).read_text()).text
    assert "scores of single responses cannot be shown" in text
    assert "40.safetensors" in text


def test_hostile_texts_and_ids_are_shown_and_do_nothing(
    run_dir: Path, tmp_path: Path, html: str
) -> None:
    folder = copied(run_dir, tmp_path, *everything(run_dir))
    rows = [json.loads(row) for row in (folder / "probes.jsonl").read_text().splitlines()]
    named = [{**hostile(row), "id": row["id"]} for row in rows]
    (folder / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    page = write_report(folder).read_text()
    assert Page(page).count("script") == Page(html).count("script")
    assert Page(page).count("img") == 0
    assert "<img src=x onerror=alert(2)>⟨U+001B⟩[31m⟨U+202E⟩gnp.exe" in section(page).text


def tokenizer_folder(folder: Path) -> Path:
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_tokens_are_read_with_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    read = reader(str(tokenizer_folder(tmp_path)), [])
    assert read is not None
    ids = tiny.tokenizer()("what of tea?", add_special_tokens=False)["input_ids"]
    assert "".join(read(ids)).split() == str(tiny.tokenizer().decode(ids)).split()


def test_a_checkpoint_serves_where_the_model_has_no_tokenizer(tmp_path: Path) -> None:
    assert reader("", [str(tmp_path / "gone"), str(tokenizer_folder(tmp_path / "saved"))])


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}'])
def test_a_damaged_tokenizer_reads_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    assert reader(str(tmp_path), []) is None


def test_a_tokenizer_that_reads_something_else_is_not_used(run_dir: Path, tmp_path: Path) -> None:
    folder = copied(run_dir, tmp_path / "run", *everything(run_dir))
    record = folder / "record.jsonl"
    model = json.dumps(str(tokenizer_folder(tmp_path / "model")))
    record.write_text(record.read_text().replace('"model":""', f'"model":{model}'))
    answer = tokens_of(write_report(folder).read_text())[0]["0"]
    assert all(re.fullmatch(r"#\d+", piece) for piece in answer["text"])


METRICS = {
    "snapshot_step": 30,
    "attribution_nats": {"chosen": {"chosen": 5.8, "rejected": 4.1}, HOSTILE: {"chosen": -2.0}},
    "entk_norm": {"chosen": {"chosen": 1.5}},
}


def told(folder: Path, lines: Sequence[dict[str, Any]]) -> str:
    """The section about what lies beside a run with these snapshot lines."""
    record = open_record(folder, "run")
    for line in lines:
        record.append("snapshot", line, phase="dpo", step=30)
    record.close()
    return beside_section(folder, folder / "report.html", tell(read_record(folder)))


def test_a_snapshot_is_linked_and_its_numbers_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "snaps" / "a b").mkdir(parents=True)
    (tmp_path / "snaps" / "a b" / "snapshot.html").touch()
    page = Page(told(tmp_path, [{"id": "s1", "path": "snaps/a b", "metrics": METRICS}]))
    assert "Snapshot s1 step 30" in page.text
    assert [a["href"] for tag, a in page.elements if tag == "a"] == ["./snaps/a%20b/snapshot.html"]
    assert page.count("table") == 2
    assert page.count("img") == 0


def test_a_snapshot_in_the_runs_folder_is_found_without_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "step-30"
    folder.mkdir(parents=True)
    (folder / "snapshot.html").touch()
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    page = Page(told(tmp_path, []))
    assert "Snapshot step-30 step 30" in page.text
    assert "chosen5.84.1" in page.text


def test_snapshots_are_in_the_order_of_their_steps_and_the_latest_is_open(tmp_path: Path) -> None:
    steps = {"a": 30, "b": 6}
    lines = [
        {"id": name, "path": name, "metrics": {**METRICS, "snapshot_step": step}}
        for name, step in steps.items()
    ]
    page = Page(told(tmp_path, lines))
    assert page.text.index("Snapshot b step 6") < page.text.index("Snapshot a step 30")
    assert ["open" in attrs for tag, attrs in page.elements if tag == "details"] == [False, True]


def test_no_link_leads_to_a_file_that_is_not_there(tmp_path: Path) -> None:
    page = Page(told(tmp_path, [{"id": "s1", "path": "javascript:alert(1)", "metrics": METRICS}]))
    assert page.count("a") == 0
    assert page.count("table") == 2


def with_pushers(folder: Path) -> None:
    """A snapshot in the run's folder with one pusher of chosen and damaged ones of the others."""
    snapshot = folder / "snapshots" / "step-30"
    snapshot.mkdir(parents=True)
    (snapshot / "metrics.json").write_text(json.dumps(METRICS))
    (snapshot / "snapshot.html").touch()
    side = {"nats": 4.5, "text": f"told {HOSTILE}"}
    strong = {"sample": "row 7", "nats": 4.5, "prompt": f"asked {HOSTILE}", "sides": {"a": side}}
    weaker = [{**strong, "sample": f"row {place}"} for place in range(100, 110)]
    pushers = {"chosen": {"up": [strong, *weaker], "down": []}, "rejected": [], HOSTILE: {"up": 3}}
    (snapshot / "pushers.json").write_text(json.dumps(pushers))


def test_who_pushes_most_is_on_the_page_as_text(tmp_path: Path) -> None:
    with_pushers(tmp_path)
    (tmp_path / "probes.jsonl").touch()
    page = Page(told(tmp_path, []))
    assert "row 7" in page.text
    assert page.text.count("row 10") == PUSHING - 1
    assert "asked" in page.text
    assert "told" in page.text
    assert page.count("img") == page.count("script") == 0


def test_a_run_that_keeps_no_texts_shows_none_of_its_pushers(tmp_path: Path) -> None:
    with_pushers(tmp_path)
    page = Page(told(tmp_path, []))
    assert "row 7" in page.text
    assert "asked" not in page.text
    assert "told" not in page.text


def ranked(folder: Path, count: int) -> None:
    rows = [{"rank": i + 1, "id": f"pair {i}", "entanglement": 3.0 - i / 100} for i in range(count)]
    lines = [json.dumps({**row, "padding": "x" * 900}) for row in rows]
    (folder / "pairs.ranked.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("count", [1, 7, 200])
def test_both_ends_of_a_ranking_are_on_the_page_and_it_is_linked(
    tmp_path: Path, count: int
) -> None:
    ranked(tmp_path, count)
    (tmp_path / "pairs.ranked.html").touch()
    page = Page(told(tmp_path, []))
    assert [a["href"] for tag, a in page.elements if tag == "a"] == ["./pairs.ranked.html"]
    ends = {*range(count)[:5], *range(count)[-5:]}
    assert page.count("tr") == len(ends) + 1
    assert f"pair {count - 1}" in page.text


def test_with_nothing_beside_it_there_is_no_section(tmp_path: Path) -> None:
    assert told(tmp_path, []) == ""


def test_a_thousand_probes_stay_under_five_megabytes(tmp_path: Path) -> None:
    page = write_report(large_run(tmp_path, 1000, 12, 128))
    assert page.stat().st_size < 5_000_000
    assert len(tokens_of(page.read_text())) == 50
