"""A runbook for every alert, and everything it names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import dashboards
from dashboards.books import END, START
from forcegauge.catalogue import METRICS
from forcegauge.cli import cli
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor import catalogue
from forcegauge_monitor.alerts import ALERTS
from forcegauge_monitor.runbooks import as_page, contents, runbook
from tests.servers import Prometheus, prometheus

ROOT = Path(dashboards.__file__).parent
FOLDER = ROOT / "runbooks"
SHIPPED = ROOT.parent / "monitor" / "forcegauge_monitor" / "data" / "runbooks"
PAGES = sorted(FOLDER.glob("*.md"))
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
REPORT = ROOT.parent / "agent" / "forcegauge" / "reporting"

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def queries(path: Path) -> list[str]:
    """One query a line; a line that begins with # is a comment."""
    lines = "\n".join(blocks(path.read_text(), "promql")).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def commands(text: str) -> Iterator[list[str]]:
    """What is called as `forcegauge ...`: in code and in blocks of a shell."""
    for call in re.findall(r"(?:^|`)forcegauge ([^`\n]+)", text, re.MULTILINE):
        yield call.split()


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {path.stem for path in PAGES} == {row.name for row in ALERTS}


@page
def test_a_page_has_its_four_sections_in_order(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    meaning = text.index("## Meaning")
    assert meaning < text.index(START) < text.index(END) < text.index("## Impact")


@page
def test_a_page_says_when_the_alert_fires(path: Path) -> None:
    said = path.read_text().partition(START)[2].partition(END)[0]
    assert "**It fires** (severity " in said


@page
def test_queries_name_metrics_and_labels_that_exist(path: Path) -> None:
    known = {row.name: row for row in (*METRICS, *catalogue.METRICS)}
    assert queries(path)
    for query in queries(path):
        names = set(re.findall(r"\bforcegauge_\w+", query))
        assert names <= set(known), query
        for value in re.findall(r'response_type[!=~]+"([^"]+)"', query):
            assert set(value.split("|")) <= set(RESPONSE_TYPES), query


@page
def test_commands_exist_with_their_options(path: Path) -> None:
    for words in commands(path.read_text()):
        command: click.Command = cli
        context = click.Context(cli)
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, words
            command = found
        known = {name for each in command.params for name in each.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


@page
def test_links_lead_to_other_pages(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())
    assert {FOLDER / link for link in links} <= set(PAGES)
    assert all(f"[{Path(link).stem}]({link})" in path.read_text() for link in links)


@page
def test_figures_of_the_report_have_the_titles_that_it_draws(path: Path) -> None:
    drawn = "".join(file.read_text() for file in REPORT.glob("*.py"))
    for title in re.findall(r"\*\*([^*]+)\*\*", path.read_text().partition(END)[2]):
        assert f'"{title}"' in drawn, title
    for heading in re.findall(r"(?<!\*)\*((?:What|When) [^*]+)\*(?!\*)", path.read_text()):
        assert f"<h2>{heading}</h2>" in drawn, heading


def test_what_the_wheel_carries_is_the_same() -> None:
    shipped = {path.name: path.read_text() for path in SHIPPED.iterdir()}
    assert shipped == {path.name: path.read_text() for path in PAGES}


def test_the_list_names_all_and_a_page_is_served_whole() -> None:
    for row in ALERTS:
        assert f"[{row.name}]({row.name})" in contents()
        assert runbook(row.name) == (FOLDER / f"{row.name}.md").read_text()
    assert runbook("ForceGaugeNone") is None
    assert runbook("../settings") is None


def test_a_page_in_html_has_tables_and_code_and_no_marks() -> None:
    html = as_page((FOLDER / "ForceGaugeSqueezing.md").read_text())
    assert "<title>ForceGaugeSqueezing · forcegauge runbook</title>" in html
    assert all(part in html for part in ("<table>", "<code", "<h2>Mitigation</h2>"))
    assert "conditions --" not in html


def test_html_inside_of_a_page_is_escaped() -> None:
    html = as_page("# <b>x</b>\n\n<script>alert(1)</script>\n\n[a](javascript:alert(1))\n")
    assert "<script>" not in html
    assert "<b>" not in html
    assert 'href="javascript' not in html


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.mark.slow
@page
def test_a_real_prometheus_takes_every_query(path: Path, server: Prometheus) -> None:
    for query in queries(path):
        server.query(query)
