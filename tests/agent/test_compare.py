from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from forcegauge.cli import main
from forcegauge.compare import Comparison, Entry, compare
from forcegauge.compare_table import (
    MEASURES,
    as_json,
    cells,
    heads,
    outcome,
    plain_table,
    rich_tables,
    said,
)
from forcegauge.errors import InputError
from forcegauge.reporting.comparison import render, write_comparison
from tests.agent.test_report import HOSTILE, Page
from tests.benchmarks.report import recorded_run
from tests.synthetic_run import two_phase_run

Line = dict[str, Any]
RATES = ("dpo-squeeze-0", "dpo-squeeze-slow", "dpo-gentle-0")
"""Recorded finetunes that differ in the learning rate: 5e-5, 2e-5 and 5e-6."""
SQUEEZE = MEASURES[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: recorded_run(name, folder / name) for name in (*RATES, "sppo-squeeze", "sft-0")}


@pytest.fixture(scope="module")
def sweep(runs: Mapping[str, Path]) -> Comparison:
    return compare([runs[name] for name in RATES])


def changed(source: Path, folder: Path, change: Callable[[Line], None]) -> Path:
    """A copy of a run with every line of its record changed."""
    lines = [json.loads(row) for row in (source / "record.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    folder.mkdir()
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def entry(comparison: Comparison, name: str) -> Entry:
    return next(each for each in comparison.entries if each.name == name)


def with_probes(probe_hash: str) -> Callable[[Line], None]:
    def change(line: Line) -> None:
        if line["kind"] == "run":
            line["probe_hash"] = probe_hash

    return change


def test_runs_are_in_the_order_of_the_learning_rate(sweep: Comparison) -> None:
    assert [each.name for each in sweep.entries] == [
        "dpo-gentle-0",
        "dpo-squeeze-slow",
        "dpo-squeeze-0",
    ]
    assert sweep.swept == ("learning_rate",)


def test_only_settings_that_differ_are_told(sweep: Comparison) -> None:
    assert sweep.differing == ("learning_rate", "steps")


def test_each_run_has_its_verdict_and_the_step_since_which_it_holds(sweep: Comparison) -> None:
    found = {each.name: (each.verdict, each.since) for each in sweep.entries}
    assert found["dpo-squeeze-0"] == ("squeezing", 4.0)
    assert found["dpo-gentle-0"][0] == "learning"


def test_the_sentences_say_which_squeezed_and_by_how_much(sweep: Comparison) -> None:
    first, *rest = said(sweep)
    assert first == (
        "Squeezing: dpo-squeeze-slow (since step 4), dpo-squeeze-0 (since step 4); "
        "learning: dpo-gentle-0."
    )
    assert any("Squeezed most: dpo-squeeze-0 (+4.16 nats); least: dpo-gentle-0" in x for x in rest)


def test_a_run_that_squeezed_and_healed_is_told(runs: Mapping[str, Path]) -> None:
    found = compare([runs["sppo-squeeze"], runs["dpo-gentle-0"]])
    assert "sppo-squeeze was squeezing from step 6 to 18." in list(said(found))


def test_an_alarm_beside_a_calm_verdict_is_told(runs: Mapping[str, Path]) -> None:
    found = compare([runs["sft-0"], runs["dpo-squeeze-0"]])
    told = "sft-0 is learning, but an alarm is on: hallucination_pressure."
    assert told in list(said(found))
    assert not any("dpo-squeeze-0 is" in sentence for sentence in said(found))


def test_outcomes_are_the_signals_of_the_last_probe(
    sweep: Comparison, runs: Mapping[str, Path]
) -> None:
    last = [
        json.loads(row) for row in (runs["dpo-squeeze-0"] / "record.jsonl").read_text().splitlines()
    ]
    probe = [line for line in last if line["kind"] == "probe"][-1]
    run = entry(sweep, "dpo-squeeze-0")
    for measure in MEASURES:
        value = outcome(run, measure)
        if measure.key in probe["signals"]:
            assert value == pytest.approx(probe["signals"][measure.key], abs=2e-4)


def test_the_argmax_in_untrained_contexts_rises_where_it_squeezes(sweep: Comparison) -> None:
    argmax = next(each for each in MEASURES if each.key == "untrained_argmax_change_nats")
    squeezed = outcome(entry(sweep, "dpo-squeeze-0"), argmax)
    gentle = outcome(entry(sweep, "dpo-gentle-0"), argmax)
    assert squeezed is not None
    assert gentle is not None
    assert squeezed > gentle > 0


def test_another_probe_set_leaves_the_verdict_and_no_numbers(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    other = changed(runs["dpo-squeeze-0"], tmp_path / "other", with_probes("ff"))
    found = compare([runs["dpo-squeeze-slow"], runs["dpo-gentle-0"], other])
    alone = entry(found, "dpo-squeeze-0")
    assert (alone.verdict, outcome(alone, SQUEEZE)) == ("squeezing", None)
    assert any("another probe set" in note and "dpo-squeeze-0" in note for note in found.notes)
    assert outcome(entry(found, "dpo-gentle-0"), SQUEEZE) is not None


def test_where_no_two_were_measured_alike_only_verdicts_are_compared(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    other = changed(runs["dpo-squeeze-0"], tmp_path / "other", with_probes("ff"))
    found = compare([runs["dpo-gentle-0"], other])
    assert [outcome(each, SQUEEZE) for each in found.entries] == [None, None]
    assert any("only verdicts can be compared" in note for note in found.notes)
    assert "<figure" not in render(found)


def test_without_tokens_in_the_record_it_says_so_and_uses_steps(runs: Mapping[str, Path]) -> None:
    found = compare([runs["dpo-squeeze-0"], runs["dpo-gentle-0"]], by="tokens")
    assert found.by == "step"
    assert any("Tokens seen are not in the record of" in note for note in found.notes)


def test_runs_are_aligned_by_tokens_where_all_know_them(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    def seen(line: Line) -> None:
        line["tokens_seen"] = 1000 + 512 * line["step"]

    paths = [changed(runs[name], tmp_path / name, seen) for name in RATES[:2]]
    found = compare(paths, by="tokens")
    assert found.by == "tokens"
    assert found.entries[0].positions("tokens")[:2] == [0.0, 512.0]


def test_a_phase_counts_from_its_own_start(tmp_path: Path, runs: Mapping[str, Path]) -> None:
    found = compare([two_phase_run(tmp_path), runs["dpo-squeeze-0"]])
    run = entry(found, "demo")
    assert (found.phase, run.positions("step")[0], run.since) == ("dpo", 0.0, 6)
    assert any("which began in demo at 20" in note for note in found.notes)


def test_runs_that_share_no_phase_are_compared_by_their_last(runs: Mapping[str, Path]) -> None:
    found = compare([runs["sft-0"], runs["dpo-squeeze-0"]])
    assert found.phase == ""
    assert any("share no phase" in note for note in found.notes)


def test_runs_of_one_name_are_told_apart_by_their_folders(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    copies = [changed(runs["sft-0"], tmp_path / name, lambda line: None) for name in ("a", "b")]
    assert [each.name for each in compare(copies).entries] == ["a", "b"]


def test_the_learning_rate_is_read_off_the_forces_where_no_setting_has_it(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    def hidden(rate: float) -> Callable[[Line], None]:
        def change(line: Line) -> None:
            line.get("settings", {}).pop("learning_rate", None)
            if line["kind"] == "end":
                norms = {"force_up_norm": 2.0, "force_up_step_norm": 2.0 * rate}
                line.update(kind="forces", **norms)

        return change

    paths = [
        changed(runs["dpo-squeeze-0"], tmp_path / str(rate), hidden(rate)) for rate in (3e-5, 1e-5)
    ]
    found = compare(paths)
    assert found.swept == ("learning_rate",)
    assert [each.settings["learning_rate"] for each in found.entries] == ["1e-05", "3e-05"]
    assert any("highest that the recorded forces show" in note for note in found.notes)


def test_settings_of_the_phases_before_are_told_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = two_phase_run(tmp_path / "a")

    def other(line: Line) -> None:
        if (line["kind"], line["phase"]) == ("run", "sft"):
            line["settings"]["every"] = 9

    second = changed(two_phase_run(tmp_path / "b"), tmp_path / "c", other)
    assert compare([first, second]).differing == ("sft: every",)


def test_the_plain_table_is_never_cut(sweep: Comparison) -> None:
    head, *rows = plain_table(sweep).splitlines()
    assert head.split()[:2] == ["run", "verdict"]
    assert all(row.split()[0] in RATES for row in rows)
    assert [len(cells(sweep, each)) for each in sweep.entries] == [len(heads(sweep))] * 3


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (160, 1)])
def test_a_narrow_terminal_gets_two_tables_that_are_not_cut(
    sweep: Comparison, width: int, tables: int
) -> None:
    found = rich_tables(sweep, width)
    assert len(found) == tables
    console = Console(width=width, file=io.StringIO())
    for table in found:
        console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("dpo-squeeze-slow") == tables
    assert "squeezing" in printed
    assert "+4.16" in printed


def test_json_leaves_out_what_is_not_defined(runs: Mapping[str, Path], tmp_path: Path) -> None:
    other = changed(runs["dpo-squeeze-0"], tmp_path / "other", with_probes("ff"))
    told = as_json(compare([runs["dpo-squeeze-slow"], runs["dpo-gentle-0"], other]))
    numbers = {row["run"]: row.get("squeeze_nats") for row in json.loads(json.dumps(told))["runs"]}
    assert numbers["dpo-squeeze-0"] is None
    assert numbers["dpo-squeeze-slow"] == pytest.approx(2.41, abs=0.01)


def test_the_page_has_a_figure_and_a_table_for_every_measure(sweep: Comparison) -> None:
    page = Page(render(sweep))
    assert page.count("figure") == len(MEASURES)
    assert page.count("table") == len(MEASURES) + 2


def test_the_page_says_what_to_do_where_it_squeezes(sweep: Comparison) -> None:
    assert (
        "Where it is squeezing: Stop before the chosen answers fall too."
        in Page(render(sweep)).text
    )


def test_the_page_names_no_resource_outside_itself(sweep: Comparison) -> None:
    page = Page(render(sweep))
    named = [attrs.get(name) for _, attrs in page.elements for name in ("src", "href", "action")]
    assert [value for value in named if value is not None] == ["data:,"]


def test_hostile_names_are_shown_and_do_nothing(
    runs: Mapping[str, Path], tmp_path: Path, sweep: Comparison
) -> None:
    def attack(line: Line) -> None:
        line["run"] = HOSTILE
        if line["kind"] == "run":
            line["settings"] = {HOSTILE: HOSTILE, "learning_rate": HOSTILE}
        if "verdict" in line:
            line["verdict"] = HOSTILE

    attacked = compare([changed(runs["sft-0"], tmp_path / "x", attack), runs["sft-0"]])
    page = Page(render(attacked))
    assert page.count("script") == Page(render(sweep)).count("script")
    assert page.count("img") == 0
    assert "<img src=x onerror=alert(2)>⟨U+001B⟩[31m⟨U+202E⟩gnp.exe" in page.text
    assert "\x1b" not in plain_table(attacked)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> object:
    """Run `forcegauge compare` with these arguments; its exit code."""
    monkeypatch.setattr(sys, "argv", ["forcegauge", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_the_command_prints_the_table_and_writes_the_page(
    runs: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = tmp_path / "page.html"
    assert command(monkeypatch, *(runs[name] for name in RATES), "-o", page) == 0
    printed = capsys.readouterr().out
    assert "dpo-squeeze-slow" in printed
    assert printed.splitlines()[-1] == f"Page: {page}"
    assert 1_500_000 < page.stat().st_size < 2_500_000


def test_with_json_nothing_else_is_printed(
    runs: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = (runs["sft-0"], runs["dpo-gentle-0"])
    assert command(monkeypatch, *chosen, "--json", "-o", tmp_path / "page.html") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


def hostile_terminal(line: Line) -> None:
    line["run"] = "a\x1b[31m\nb"


def test_no_escape_reaches_the_terminal(
    runs: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = changed(runs["dpo-squeeze-0"], tmp_path / "bad", hostile_terminal)
    assert command(monkeypatch, bad, runs["dpo-gentle-0"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{run}"], "one run is no comparison"),
        (["{run}", "{run}"], "named twice"),
        (["{run}", "{empty}"], "cannot be read"),
        (["{run}", "nowhere"], "no such run"),
        (["{run}", "{other}", "--phase", "ppo"], "not every run has a phase 'ppo'"),
        (["{run}"] * 17, "17 runs are too many"),
    ],
)
def test_bad_input_is_one_clear_line(
    runs: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    problem: str,
) -> None:
    places = {"run": runs["sft-0"], "other": runs["dpo-gentle-0"], "empty": tmp_path}
    assert command(monkeypatch, *(word.format(**places) for word in arguments)) == 2
    told = capsys.readouterr().err
    assert problem in told
    assert told.count("\n") == 1


def test_a_run_without_a_probe_is_one_clear_line(runs: Mapping[str, Path], tmp_path: Path) -> None:
    first = (runs["sft-0"] / "record.jsonl").read_text().splitlines()[0]
    (tmp_path / "record.jsonl").write_text(first + "\n")
    with pytest.raises(InputError, match="no probe yet"):
        compare([runs["sft-0"], tmp_path])


def test_a_page_goes_only_where_a_file_can_be(sweep: Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        write_comparison(sweep, tmp_path)
