"""Attaches a gauge to a training script that knows nothing of it.

    FORCEGAUGE_PROBES=probes.jsonl python -m forcegauge.attach train.py --epochs 1
    FORCEGAUGE_PROBES=probes.jsonl torchrun --nproc-per-node 2 -m forcegauge.attach train.py

runs the script with a callback in every Trainer of transformers and TRL that trains. transformers
has no entry points for callbacks; Lightning has, so that there the variable alone is enough. Any
other setting comes from the environment too (`FORCEGAUGE_RUN`, `FORCEGAUGE_DIR`, ...). Without the
variable nothing is imported and nothing done.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger("forcegauge")

PROBES = "FORCEGAUGE_PROBES"
"""The variable that names the probe file."""
TRAINER = "transformers.trainer"
USAGE = "Run python -m forcegauge.attach SCRIPT ARGUMENTS, or -m MODULE in place of SCRIPT"


def lightning_callbacks() -> list[Any]:
    """Of the entry point group ``lightning.pytorch.callbacks_factory``."""
    if not os.environ.get(PROBES):
        return []
    from forcegauge.errors import InputError
    from forcegauge.integrations.lightning import Attached

    try:
        return [Attached()]
    except InputError as error:
        logger.error("not attached, training goes on: %s", error)
        return []


class _Finder(MetaPathFinder):
    """Waits for the script to import transformers' Trainer: what it sets before still counts."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patched(spec.loader)
        return spec


class _Patched(Loader):
    """The module as it is, with one more default callback."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if not hasattr(module, "DEFAULT_CALLBACKS"):
            logger.error("not attached, training goes on: this transformers takes no callback")
            return
        from forcegauge.integrations.transformers import Attached

        module.DEFAULT_CALLBACKS.append(Attached)


def run(arguments: Sequence[str]) -> None:
    """Run a script, or ``-m MODULE``, with these arguments; raises `InputError` for bad ones."""
    from forcegauge.errors import InputError
    from forcegauge.probes import ProbeSet

    module = arguments[:1] == ["-m"]
    if len(arguments) < 1 + module:
        raise InputError("no script is named", fix=USAGE)
    if not module and not Path(arguments[0]).is_file():
        raise InputError("no such script", file=arguments[0], fix=USAGE)
    if not os.environ.get(PROBES):
        raise InputError("no probe file is named", field=PROBES, fix="Set it to a probe file")
    ProbeSet.load(os.environ[PROBES])
    sys.meta_path.insert(0, _Finder())
    if module:
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    from forcegauge.errors import InputError

    try:
        run(sys.argv[1:])
    except InputError as error:
        sys.stderr.write(f"forcegauge: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
