"""The command line as a process: instant, light, and clear about mistakes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

import forcegauge
from forcegauge.cli import COMMANDS, cli


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("forcegauge")
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


HEAVY = "sorted({'torch', 'transformers', 'celery', 'numpy', 'plotly'} & set(sys.modules))"


def test_importing_forcegauge_imports_nothing_heavy() -> None:
    assert python(f"import sys, forcegauge; print({HEAVY})") == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom forcegauge.cli import cli\n"
        f"cli.main(['--help'], standalone_mode=False)\nprint({HEAVY})"
    )
    assert python(code).endswith("[]")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys\nfrom forcegauge.cli import cli\n"
        f"cli.main(['{name}', '--help'], standalone_mode=False)\nprint({HEAVY})"
    )
    assert python(code).endswith("[]")


def test_public_names_are_sorted_and_there() -> None:
    assert forcegauge.__all__ == sorted(forcegauge.__all__)
    for name in forcegauge.__all__:
        assert getattr(forcegauge, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        forcegauge.Nothing  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists_under_its_name(name: str) -> None:
    command = getattr(import_module(f"forcegauge.commands.{name}"), name)
    assert isinstance(command, click.Command)
    assert cli.get_command(click.Context(cli), name) is command


def test_a_users_mistake_is_one_line_and_exit_code_2() -> None:
    done = run("probes", "check", "nowhere.jsonl")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere.jsonl" in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("prob")
    assert done.returncode == 2
    assert "prob" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.strip().endswith("0.1.0")
