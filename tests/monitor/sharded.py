"""Trains a tiny model in two processes and leaves its optimizer's state in shards.

As a program it makes the files of DeepSpeed's ZeRO that `test_state.py` reads, for which deepspeed
must be installed: ``DS_ACCELERATOR=cpu python -m tests.monitor.sharded tests/monitor/zero``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from transformers import Trainer

from tests.monitor import tinies

RATE = 1e-3
STEPS = 2
STAGES = {"stage1": 1, "stage2": 2, "stage3": 3}


def small() -> nn.Module:
    """A model of about 1300 weights in shapes that two processes cannot share evenly."""
    return tinies.model(
        "llama", vocab_size=13, hidden_size=6, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=3, intermediate_size=7,
    )  # fmt: skip


def grouped(net: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups as transformers' Trainer makes them."""
    decayed = Trainer.get_decay_parameter_names(None, net)  # type: ignore[arg-type]
    named = list(net.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.0},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def loss_of(net: nn.Module, seed: int) -> Tensor:
    """The loss of a step: a sequence of random tokens."""
    ids = torch.randint(0, 13, (1, 9), generator=torch.Generator().manual_seed(seed))
    found: Tensor = net(input_ids=ids, labels=ids).loss
    return found


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A few plain steps."""
    for seed in range(STEPS):
        loss_of(net, seed).backward()
        optimizer.step()
        optimizer.zero_grad()


def in_two_processes(work: Callable[..., None], folder: Path) -> None:
    """Run ``work(folder)`` in two processes that share a group."""
    folder.mkdir(parents=True, exist_ok=True)
    spawn(_process, (work, folder), nprocs=2)


def _process(rank: int, work: Callable[..., None], folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= ranks | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    work(folder)
    distributed.destroy_process_group()


def fsdp(folder: Path) -> None:
    """Both versions of FSDP, written by Accelerate as under transformers' Trainer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    first = FullyShardedDataParallel(small(), use_orig_params=True, device_id=torch.device("cpu"))
    _saved(first, folder / "fsdp1", 1)
    second = small()
    mesh = init_device_mesh("cpu", (2,))
    for layer in second.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    fully_shard(second, mesh=mesh)
    _saved(second, folder / "fsdp2", 2)


def _saved(net: nn.Module, folder: Path, version: int) -> None:
    from accelerate import (  # type: ignore[import-untyped]
        FullyShardedDataParallelPlugin,
        PartialState,
    )
    from accelerate.utils import save_fsdp_optimizer  # type: ignore[import-untyped]

    optimizer = torch.optim.AdamW(grouped(net), lr=RATE)
    train(net, optimizer)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, state_dict_type="SHARDED_STATE_DICT"
    )
    save_fsdp_optimizer(plugin, PartialState(cpu=True), optimizer, net, folder)


def zero(folder: Path) -> None:
    """All stages of ZeRO, written by deepspeed."""
    import deepspeed  # type: ignore[import-not-found, unused-ignore]

    for name, stage in STAGES.items():
        net = small()
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,
        }
        optimizer = torch.optim.AdamW(grouped(net), lr=RATE)
        engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config)
        for seed in range(STEPS):
            engine.backward(loss_of(engine, seed))
            engine.step()
        engine.save_checkpoint(folder / name)
        if distributed.get_rank() == 0:
            for script in (folder / name).glob("*.py"):
                script.unlink()


if __name__ == "__main__":
    in_two_processes(zero, Path(sys.argv[1]))
