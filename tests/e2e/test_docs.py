"""What the pages print exists: commands parse, code runs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from transformers import PreTrainedModel

from forcegauge.cli import cli
from forcegauge.record import probes_by_phase, read_record
from tests import tiny

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "node_modules", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
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


def test_the_block_for_any_loop_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (b for b in blocks(ROOT / "agent" / "README.md", "python") if "gauge.step" in b)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCEGAUGE_PORT", "0")
    tiny.probe_set().save("probes.jsonl")
    model = tiny.llama()
    rows = torch.tensor([tiny.tokenizer()("what of tea?")["input_ids"]])
    names: dict[str, Any] = {
        "tokenizer": tiny.tokenizer(),
        "model": model,
        "loader": [rows] * 3,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "token_logps": token_logps,
        "my_loss": lambda logps: -logps.mean(),
    }
    exec(compile(block, "README.md", "exec"), names)
    lines = read_record(tmp_path / "forcegauge-runs" / "my-run")
    assert [line["step"] for line in probes_by_phase(lines)["train"]] == [0, 1, 2, 3]
    assert {"forces", "end"} <= {line["kind"] for line in lines}


def token_logps(model: PreTrainedModel, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    labels = batch[:, 1:]
    logits = model(input_ids=batch).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, labels[..., None])[..., 0], labels


def test_the_line_for_trainers_is_the_same_on_both_pages() -> None:
    pages = [ROOT / "README.md", ROOT / "agent" / "README.md"]
    found = [[b for b in blocks(page, "python") if "add_callback" in b] for page in pages]
    assert found[0] == found[1] != []
