"""The command line; commands live in `forcegauge.commands` and are imported when called."""

from __future__ import annotations

import importlib
import sys

import click

from forcegauge.errors import InputError, RunError

COMMANDS = {
    "compare": "Put several runs side by side: which squeezed, and what differed.",
    "demo": "Watch a real model being finetuned, from SFT to a squeezing DPO.",
    "metrics": "Print every metric with its unit, meaning and formula.",
    "monitor": "Run the service for many runs, and look into checkpoints.",
    "pairs": "Rank preference pairs before training on them.",
    "probes": "Build, check and show probe sets.",
    "report": "Write a run's record as one HTML page.",
    "score": "Score a probe set with one or more checkpoints.",
    "watch": "Watch a run live in the terminal.",
}
"""Name -> short help. `forcegauge.commands.NAME` holds a click command of that name."""


class LazyGroup(click.Group):
    """A group that imports a command only when it is used, so that help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"forcegauge.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forcegauge")
def cli() -> None:
    """Show where the probability mass goes while a language model is finetuned."""


def main() -> None:
    """Entry point: users' mistakes are one line and exit code 2, failures one line and 1."""
    try:
        # without standalone mode click returns an exit code instead of leaving with it
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except InputError as error:
        click.echo(f"forcegauge: {error}", err=True)
        sys.exit(2)
    except RunError as error:
        click.echo(f"forcegauge: {error}", err=True)
        sys.exit(1)
