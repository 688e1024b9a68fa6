"""Trains tiny models with TRL's trainers on the ranks that torchrun started, with and without the
callback.

    python -m torch.distributed.run --nproc-per-node 2 tests/agent/ranks/trainer.py FOLDER CASES

CASES is a JSON object: name -> ``kind`` (sft, dpo), ``watched`` and the trainer's settings. Each
rank writes FOLDER/NAME-RANK.json; the gauge's directory is FOLDER/NAME/forcegauge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]
from torch import distributed

from forcegauge import ForceGaugeCallback
from tests import tiny
from tests.agent.ranks.train import left
from tests.agent.test_never_disturb import TRAINERS


def main() -> None:
    torch.set_num_threads(1)
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, case in cases.items():
        facts = train(folder / name, **case)
        (folder / f"{name}-{distributed.get_rank()}.json").write_text(json.dumps(facts))
        AcceleratorState._reset_state()  # another trainer may want other wrappers
    PartialState().destroy_process_group()


def train(folder: Path, kind: str, watched: bool, **settings: Any) -> dict[str, Any]:
    trainer = TRAINERS[kind](folder, **settings)
    watcher = ForceGaugeCallback(tiny.probe_set(5), run="ranks", every=2, budget=None, port=0)
    if watched:
        trainer.add_callback(watcher)
    trainer.train()
    assert trainer.model_wrapped is not None
    assert trainer.optimizer is not None
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        **left(trainer.model_wrapped, trainer.optimizer),
        "random": torch.rand(1).item(),
        "failures": dict(watcher.gauge.failures) if watcher.gauge else {},
    }


if __name__ == "__main__":
    main()
