"""What the pages print exists: commands parse, code runs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from forcegauge.cli import cli
from tests.benchmarks.calibration import RECORDS, load
from tests.benchmarks.reading import PICTURES, metrics_page
from tests.benchmarks.report import recorded_run

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", "node_modules", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                if line.startswith(("forcegauge ", "make ")):
                    yield page.relative_to(ROOT).as_posix(), line


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_every_printed_command_exists_with_its_options(page: str, line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words) <= set(targets)
        return
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{page}: no command {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_line_for_trainers_is_the_same_on_both_pages() -> None:
    pages = [ROOT / "README.md", ROOT / "agent" / "README.md"]
    lines = [re.findall(r"^trainer\.add_callback.*$", page.read_text(), re.M) for page in pages]
    assert lines[0] == lines[1] != []


@pytest.mark.parametrize("page", ["reading.md", "faq.md"])
def test_commands_on_recorded_runs_do_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(ROOT / "agent" / page, "bash")).splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "forcegauge"
        for place in (word for word in words if word.isupper() or "_DIR" in word):
            if not Path(place).exists():
                recorded_run("sft-0", Path(place))
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, f"{line}: {done.output}"


def test_the_list_of_metrics_is_up_to_date() -> None:
    assert (ROOT / "agent" / "metrics.md").read_text(encoding="utf-8") == metrics_page()


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_of_a_run_is_shown_with_its_name(picture: str) -> None:
    page = (ROOT / "agent" / "reading.md").read_text(encoding="utf-8")
    assert f"![{PICTURES[picture]}: " in page
    assert f"](pictures/{picture}.png)" in page


TOLD = (
    ("reading.md", "grpo-both", "chosen_change_nats", "(+0.19)"),
    ("reading.md", "grpo-both", "untrained_change_nats", "lost 0.20 on average"),
    ("reading.md", "dpo-squeeze-0", "untrained_change_nats", "−3.9 on average"),
    ("reading.md", "dpo-squeeze-0", "chosen_change_nats", "(−0.71)"),
    ("reading.md", "dpo-squeeze-0", "preference_margin_nats", "from 4.1 to 10.6"),
    ("reading.md", "dpo-squeeze-0", "squeeze_nats", "at 5e-5 at +4.16"),
    ("reading.md", "dpo-squeeze-slow", "squeeze_nats", "at 2e-5 at +2.41"),
    ("reading.md", "dpo-gentle-0", "squeeze_nats", "at +0.65"),
    ("reading.md", "sft-0", "chosen_change_nats", "(+2.96)"),
    ("reading.md", "sft-0", "other_prompt_change_nats", "(+1.64)"),
    ("reading.md", "sft-0", "hallucination_pressure_nats", "1.26"),
    ("faq.md", "dpo-squeeze-0", "untrained_change_nats", "untrained answers 3.91"),
    ("faq.md", "dpo-gentle-0", "untrained_change_nats", "untrained ones lost 0.55"),
    ("faq.md", "dpo-gentle-0", "chosen_change_nats", "gained 0.03"),
    ("faq.md", "sft-0", "other_prompt_change_nats", "gained 1.64"),
)
"""Page, recorded run, signal at its last probe, and the words that tell its size."""


@pytest.mark.parametrize(("page", "run", "signal", "words"), TOLD)
def test_the_sizes_that_pages_tell_are_the_records(
    page: str, run: str, signal: str, words: str
) -> None:
    value = float(load(RECORDS / f"{run}.jsonl").probes[-1]["signals"][signal])
    text = re.findall(r"\d+\.\d+", words)[-1]
    assert words in (ROOT / "agent" / page).read_text(encoding="utf-8")
    assert text == f"{abs(value):.{len(text.split('.')[1])}f}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        assert heading in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
