"""Trains tiny models with DeepSpeed's ZeRO on the ranks that torchrun started; see `train`.
With a ``kind``, the case is one of TRL's trainers; see `trainer`.

    python -m torch.distributed.run --nproc-per-node 2 tests/agent/ranks/zero.py FOLDER CASES

CASES is a JSON object: name -> ``stage``, and the arguments of `train_zero` or `trainer.train`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests import tiny
from tests.agent.ranks import trainer
from tests.agent.ranks.train import LENGTH, ended, left, watch

backend: Any = importlib.import_module("deepspeed.comm.torch")


def main() -> None:
    torch.set_num_threads(1)
    # what it would compile at its start is for speed alone
    backend.build_shm_op = lambda: None
    importlib.import_module("deepspeed").init_distributed("gloo")
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, case in cases.items():
        config = {
            "zero_optimization": {"stage": case.pop("stage")},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": 2,
        }
        work = trainer.train if "kind" in case else train_zero
        facts = work(folder / name, deepspeed=config, **case)
        (folder / f"{name}-{distributed.get_rank()}.json").write_text(json.dumps(facts))
    distributed.destroy_process_group()


def train_zero(
    directory: Path, deepspeed: dict[str, Any], watched: bool, own: bool = True
) -> dict[str, Any]:
    model = tiny.llama(dropout=0.2 if own else 0.0).train()
    engine, *_ = importlib.import_module("deepspeed").initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config=deepspeed,
    )
    torch.manual_seed(distributed.get_rank() if own else 0)
    gauge = watch(directory) if watched else None
    for step in range(9):
        if step:
            learn(engine, step + (100 * distributed.get_rank() if own else 0))
        if gauge is not None:
            gauge.step(engine, step)
    engine.save_checkpoint(str(directory / "saved" / f"checkpoint-{step}"))
    return {
        **left(model, engine.optimizer),
        "random": torch.rand(1).item(),
        **(ended(gauge) if gauge else {}),
    }


def learn(engine: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 34, (2, LENGTH), generator=generator)
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()


if __name__ == "__main__":
    main()
