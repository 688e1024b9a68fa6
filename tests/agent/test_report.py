from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from forcegauge.cli import main
from forcegauge.errors import InputError, RunError
from forcegauge.gauge import ForceGauge
from forcegauge.report import write_report
from forcegauge.reporting.checkpoints import checkpoint_words
from forcegauge.reporting.figures import figures
from forcegauge.reporting.headline import tiles
from forcegauge.reporting.plots import STYLES, plotly_spec, table
from forcegauge.reporting.safe import script_json, shown
from forcegauge.reporting.story import Story, tell
from tests import tiny
from tests.synthetic_run import DPO_STEPS, SFT_STEPS, two_phase_run

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202egnp.exe &amp;"
)
"""Markup, a terminal escape, a right-to-left override and an entity."""


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.elements if name == tag)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_phase_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def story(run_dir: Path) -> Story:
    return tell(lines_of(run_dir))


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (run_dir / "record.jsonl").read_text().splitlines()]


def rewritten(source: Path, folder: Path, lines: list[dict[str, Any]]) -> Path:
    """A run directory with other lines, and the texts of the source."""
    folder.mkdir(exist_ok=True)
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("greedy.jsonl", "probes.jsonl"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def report_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def hostile(value: Any) -> Any:
    """The same structure with every text made hostile, but for the keys a record needs."""
    if isinstance(value, dict):
        kept = ("kind", "run", "phase")
        return {key: item if key in kept else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_page_goes_beside_the_record_by_default(run_dir: Path) -> None:
    assert write_report(run_dir) == run_dir / "report.html"


def test_the_page_goes_where_one_says(run_dir: Path, tmp_path: Path) -> None:
    assert write_report(run_dir, tmp_path / "mine.html").stat().st_size > 0
    assert [file.name for file in tmp_path.iterdir()] == ["mine.html"]


def test_the_page_names_no_resource_outside_itself(page: Page) -> None:
    named = [attrs.get(name) for _, attrs in page.elements for name in ("src", "href", "action")]
    assert [value for value in named if value is not None] == ["data:,"]


def test_the_page_forbids_requests(html: str) -> None:
    assert "default-src 'none'" in html


def test_the_page_is_about_two_megabytes(html: str) -> None:
    assert len(html.encode()) < 2_500_000


def test_the_first_screen_says_what_since_when_and_what_to_do(page: Page, story: Story) -> None:
    line = story.verdict_line
    assert line is not None
    assert line["verdict"] == "squeezing"
    start = page.text[:1200]
    assert f"Squeezing since step {line['since_step']}" in start
    assert f"Noticed at step {line['step']}. {line['evidence']}" in start
    assert f"What to do{line['advice']}" in start


def test_a_verdict_of_an_earlier_phase_is_not_the_verdict_so_far(run_dir: Path) -> None:
    lines = lines_of(run_dir)
    sft = [line for line in lines if line["phase"] == "sft"]
    begun = [line for line in lines if line["phase"] == "dpo"][:2]
    assert begun[1]["kind"] == "probe"
    begun[1]["verdict"] = "learning"
    assert tell(sft).verdict_line is not None
    assert tell([*sft, *begun]).verdict_line is None


def test_changes_begin_at_zero_in_every_phase(story: Story) -> None:
    for phase in story.phases:
        assert phase.changes("logprob_mean", "chosen")[0] == 0.0


def test_a_phase_ends_the_lines(story: Story) -> None:
    figure = figures(story, 1000)[0]
    chosen = plotly_spec(figure, story)["data"][0]
    assert chosen["x"].index(None) == chosen["y"].index(None) == len(SFT_STEPS)
    assert len(chosen["x"]) == len(SFT_STEPS) + 1 + len(DPO_STEPS)


def test_every_figure_is_one_that_plotly_takes(story: Story) -> None:
    import plotly.graph_objects as go

    drawn = figures(story, 1000)
    for figure in drawn:
        spec = plotly_spec(figure, story)
        assert len(go.Figure(spec["data"], spec["layout"]).data) >= len(figure.series)
    assert {"logprob_change", "argmax", "mass", "margin", "squeeze", "squeezed", "pressure"} <= {
        figure.key for figure in drawn
    }
    assert {"entropy", "forces", "valley", "repetition"} <= {figure.key for figure in drawn}


def test_every_figure_has_its_numbers_in_a_table(story: Story, page: Page) -> None:
    drawn = figures(story, 1000)
    for figure in drawn:
        rows = Page(table(figure)).count("tr")
        assert rows == 1 + sum(len(steps) for _, steps in figure.axis)
    assert page.count("table") == len(drawn) + 1


def test_alarms_are_marked_on_the_step_axis(story: Story) -> None:
    on = [alarm.on for alarm in story.alarms]
    spec = plotly_spec(figures(story, 1000)[0], story)["layout"]
    assert on
    assert [s["x0"] for s in spec["shapes"] if s["name"] == "alarm"] == sorted(set(on))


def test_limits_are_the_runs_own(run_dir: Path) -> None:
    lines = [line for line in lines_of(run_dir) if line["kind"] != "alarm"]
    for line in lines:
        if line["kind"] == "run":
            line["settings"] = {"thresholds": {"squeezing": 0.85, "repeater": HOSTILE}}
    told = tell(lines)
    drawn = {figure.key: figure.limit for figure in figures(told, 1000)}
    assert (drawn["squeeze"], drawn["squeezed"], drawn["repetition"]) == (0.85, 0.25, 0.5)
    assert "over 0.85, yet no alarm" in tiles(told)


def test_alarms_close_together_share_a_mark(story: Story) -> None:
    crowd = [
        {**story.alarms[0].line, "alarm": name, "step": 6} for name in ("displacement", "eos_loss")
    ]
    lines = [*(p for phase in story.phases for p in phase.probes), *crowd]
    told = tell(dict(line) for line in lines)
    notes = plotly_spec(figures(told, 1000)[0], told)["layout"]["annotations"]
    assert [note["text"] for note in notes if note["name"] == "alarm"] == ["1–2"]


def test_an_alarm_that_went_off_ends_there(story: Story) -> None:
    on = dict(story.alarms[0].line)
    off = {**on, "on": False, "step": on["step"] + 4}
    (alarm,) = tell([on, off]).alarms
    assert (alarm.on, alarm.off) == (on["step"], on["step"] + 4)


def test_no_two_response_types_look_alike_without_colour() -> None:
    from forcegauge.probes import RESPONSE_TYPES

    looks = [(STYLES[name].dash, STYLES[name].marker) for name in RESPONSE_TYPES]
    assert len(set(looks)) == len(RESPONSE_TYPES)


def test_outputs_are_shown_before_between_and_now(page: Page) -> None:
    assert "Water it when the top of the soil is dry." in page.text
    assert "Put the pot on a bright windowsill" in page.text
    assert page.count("mark") > 1


def test_a_run_without_texts_has_no_section_for_them(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_bytes((run_dir / "record.jsonl").read_bytes())
    assert "What the model writes" not in report_of(tmp_path).text


def test_run_facts_are_told(page: Page) -> None:
    for fact in ("SmolLM2-135M-Instruct", "ab" * 32, "0.8 s on average", "beta", "2.13.0"):
        assert fact in page.text


def test_errors_are_counted_and_shown(run_dir: Path, tmp_path: Path) -> None:
    lines = lines_of(run_dir)
    failed = {**lines[-1], "kind": "error", "reason": "scoring", "message": "no memory left"}
    text = report_of(rewritten(run_dir, tmp_path, [*lines, failed, failed])).text
    assert "errors2scoring2 times" in text
    assert "no memory left" in text


@pytest.mark.parametrize("name", ["record.jsonl", "greedy.jsonl", "probes.jsonl"])
def test_hostile_text_is_shown_and_does_nothing(
    run_dir: Path, tmp_path: Path, html: str, name: str
) -> None:
    folder = rewritten(run_dir, tmp_path, lines_of(run_dir))
    rows = [json.loads(row) for row in (folder / name).read_text().splitlines()]
    (folder / name).write_text("".join(json.dumps(hostile(row)) + "\n" for row in rows))
    attacked = report_of(folder)
    assert attacked.count("script") == Page(html).count("script")
    assert attacked.count("img") == 0
    assert "<img src=x onerror=alert(2)>⟨U+001B⟩[31m⟨U+202E⟩gnp.exe &amp;" in attacked.text


def test_hostile_names_of_types_and_phases_are_shown_and_do_nothing(
    run_dir: Path, tmp_path: Path, html: str
) -> None:
    text = (run_dir / "record.jsonl").read_text()
    name = json.dumps(HOSTILE)
    renamed = text.replace('"unrelated"', name).replace('"phase":"dpo"', f'"phase":{name}')
    folder = rewritten(run_dir, tmp_path, [json.loads(row) for row in renamed.splitlines()])
    attacked = report_of(folder)
    assert attacked.count("script") == Page(html).count("script")
    assert attacked.count("img") == 0
    assert attacked.text.count("onerror=alert(2)") > 10


def test_json_in_a_script_cannot_end_it() -> None:
    text = script_json({"a": "</script><!--", "b": "\u2028"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": "</script><!--", "b": "\u2028"}


def test_a_lone_surrogate_can_be_shown() -> None:
    assert shown("a\ud800b") == "a\N{REPLACEMENT CHARACTER}b"


def test_what_is_cut_is_said() -> None:
    assert shown("<" * 1500, 2) == "&lt;&lt; … (+1,498 characters)"


def test_a_missing_directory_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        write_report(tmp_path / "nowhere")


def test_a_directory_without_a_record_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"record\.jsonl.*directory"):
        write_report(tmp_path)


def test_an_empty_record_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").touch()
    with pytest.raises(InputError, match="empty"):
        write_report(tmp_path)


def test_a_record_that_only_began_says_that_nothing_was_probed(
    run_dir: Path, tmp_path: Path
) -> None:
    page = report_of(rewritten(run_dir, tmp_path, lines_of(run_dir)[:1]))
    assert "Nothing has been probed yet" in page.text
    assert "SmolLM2-135M-Instruct" in page.text
    assert page.count("figure") == 0


def test_a_baseline_alone_makes_a_page(run_dir: Path, tmp_path: Path) -> None:
    page = report_of(rewritten(run_dir, tmp_path, lines_of(run_dir)[:3]))
    assert "Warming since step 0" in page.text
    assert page.count("figure") == 0
    assert page.count("table") == 1


def test_a_calm_verdict_does_not_hide_an_alarm(run_dir: Path, tmp_path: Path) -> None:
    sft = [line for line in lines_of(run_dir) if line["phase"] == "sft"]
    text = report_of(rewritten(run_dir, tmp_path, sft)).text
    assert "Learning since step 3" in text
    assert "But an alarm is on: hallucination_pressure, since step 1." in text
    assert "What to doFewer epochs" in text


def test_a_value_over_its_limit_without_an_alarm_is_told_as_that(story: Story) -> None:
    calm = replace(story, alarms=())
    assert "over 0.5, yet no alarm" in tiles(calm)
    assert "yet no alarm" not in tiles(story)


def test_torn_last_lines_are_left_out(run_dir: Path, tmp_path: Path, page: Page) -> None:
    folder = rewritten(run_dir, tmp_path, lines_of(run_dir))
    for name in ("record.jsonl", "greedy.jsonl", "probes.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"schema":1,"kind":"pro')
    assert report_of(folder).text == page.text


def test_a_broken_line_of_outputs_is_named(run_dir: Path, tmp_path: Path) -> None:
    folder = rewritten(run_dir, tmp_path, lines_of(run_dir))
    (folder / "greedy.jsonl").write_text('{"id": "p1"}\n{"id": \n{"id": "p2"}\n')
    with pytest.raises(InputError, match=r"greedy\.jsonl, line 2"):
        write_report(folder)


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        write_report(run_dir, old)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_is_no_page(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        write_report(run_dir, tmp_path)


def test_an_end_counts_only_as_the_last_line(run_dir: Path) -> None:
    lines = lines_of(run_dir)
    assert tell(lines).end == lines[-1]
    assert tell([*lines, lines[0]]).end is None


def test_a_signal_that_is_not_defined_has_no_figure(run_dir: Path) -> None:
    lines = lines_of(run_dir)
    for line in lines:
        line.get("signals", {}).pop("preference_margin_nats", None)
        line.get("signals", {}).pop("displacement_nats", None)
    assert "margin" not in {figure.key for figure in figures(tell(lines), 1000)}


def long_run(run_dir: Path, probes: int) -> Iterator[dict[str, Any]]:
    found = [line for line in lines_of(run_dir) if line["kind"] == "probe"]
    for step in range(probes):
        yield {**found[step % 10], "phase": "sft", "step": step}


def test_a_long_run_is_thinned_and_keeps_its_ends(run_dir: Path) -> None:
    (phase,) = tell(long_run(run_dir, 5000)).phases
    thin = phase.thinned(600)
    assert (thin.steps[0], thin.steps[-1]) == (0, 4999)
    assert 300 < len(thin.probes) <= 600


def test_a_short_run_is_not_thinned(story: Story) -> None:
    assert [phase.thinned(600) for phase in story.phases] == list(story.phases)


def test_a_run_of_200_probes_stays_under_three_megabytes(run_dir: Path, tmp_path: Path) -> None:
    folder = rewritten(run_dir, tmp_path, list(long_run(run_dir, 200)))
    page = write_report(folder)
    assert page.stat().st_size < 3_000_000
    assert "51 of 200 probes" in page.read_text(encoding="utf-8")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> object:
    """Run `forcegauge report` with these arguments; its exit code."""
    monkeypatch.setattr(sys, "argv", ["forcegauge", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_the_command_prints_the_path(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "page.html"
    assert command(monkeypatch, run_dir, "-o", target) == 0
    assert capsys.readouterr().out == f"{target}\n"


def test_the_command_exits_with_2_for_a_wrong_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, forcegauge.report; sys.exit('torch' in sys.modules or 'plotly' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_gauge_itself_left_is_reported(tmp_path: Path) -> None:
    model = tiny.llama()
    settings: dict[str, Any] = {"run": "tiny", "directory": tmp_path, "every": 1, "budget": None}
    for phase in ("sft", "dpo"):
        with ForceGauge(
            tiny.probe_set(), tiny.tokenizer(), phase=phase, port=0, **settings
        ) as gauge:
            for step in range(4):
                gauge.step(model, step)
                with torch.no_grad():
                    model.lm_head.weight.mul_(1.3)
    page = report_of(tmp_path)
    assert "step 6 · 8 probes · ended: finished" in page.text
    for part in ("What the model writes", "What is asked", "Settings, dpo", "errors0"):
        assert part in page.text


def test_the_advice_names_the_last_checkpoint_from_before_the_alarm_built_up(page: Page) -> None:
    # step 30 was saved without an alarm, but the streak of squeezing had begun by then
    assert "The last healthy checkpoint is out/sft/checkpoint-20, of step 20." in page.text


def test_without_a_healthy_checkpoint_the_advice_says_so(story: Story) -> None:
    sick = tuple({**line, "healthy": False} for line in story.checkpoints)
    said = checkpoint_words(replace(story, checkpoints=sick))
    assert "No checkpoint is free of alarms" in said
    assert "out/sft/checkpoint-20, of step 20, with hallucination_pressure" in said
    assert checkpoint_words(replace(story, checkpoints=())) == ""


def test_of_checkpoints_with_the_same_alarms_the_one_where_they_built_up_is_named(
    story: Story,
) -> None:
    (first,) = (line for line in story.checkpoints if line["step"] == 30)
    later = {**first, "step": 44, "path": "out/dpo/checkpoint-44", "healthy": False}
    built = {**first, "healthy": False}
    assert "checkpoint-30, of step 30" in checkpoint_words(
        replace(story, checkpoints=(built, later))
    )


def test_a_checkpoint_that_was_written_again_counts_as_it_was_last(story: Story) -> None:
    first = {"kind": "checkpoint", "phase": "dpo", "step": 44, "run": "demo", "path": "out/c"}
    told = tell([{**first, "healthy": True}, {**first, "healthy": False}])
    assert [line["healthy"] for line in told.checkpoints] == [False]
