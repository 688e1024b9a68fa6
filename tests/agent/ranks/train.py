"""Trains tiny models on the ranks that torchrun started, one case after the other.

    python -m torch.distributed.run --nproc-per-node 2 tests/agent/ranks/train.py FOLDER CASES

CASES is a JSON object: name -> arguments of `train`. Each rank writes FOLDER/NAME-RANK.json; the
gauge's directory is FOLDER/NAME, unless the case names another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from forcegauge import ForceGauge, behaviour, prober, ways
from forcegauge.phase import Phase
from tests import tiny

EVERY = 2
LENGTH = 24


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, case in cases.items():
        facts = train(folder / case.pop("directory", name), **case)
        (folder / f"{name}-{distributed.get_rank()}.json").write_text(json.dumps(facts))
    distributed.destroy_process_group()


def train(
    directory: Path,
    *,
    wrap: str = "ddp",
    watched: bool = True,
    steps: int = 8,
    first: int = 0,
    own: bool = False,
    fault: dict[str, Any] | None = None,
    on_alarm: str = "log",
    loss: float = 1.0,
    **shape: Any,
) -> dict[str, Any]:
    """Train and tell what became of it; probes begin at step ``first``. ``own``: ranks have batches
    and dropout of their own; else all do the same, so that the weights do not depend on how many
    there are. ``loss`` is what the gauge is told."""
    model = WRAPS[wrap](made(own, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(distributed.get_rank() if own else 0)
    gauge = watch(directory, on_alarm) if watched else None
    with faulty(**fault or {}):
        for step in range(steps + 1):
            if step:
                learn(model, optimizer, step, own)
            if gauge is not None and step >= first:
                gauge.step(model, step, loss=loss)
            if gauge is not None and gauge.should_stop:
                break
    return {
        "step": step,
        **left(model, optimizer),
        "random": torch.rand(1).item(),
        **(ended(gauge) if gauge else {}),
    }


def ended(gauge: ForceGauge) -> dict[str, Any]:
    gauge.close()
    assert gauge.judgement is not None or gauge.failures
    verdict = gauge.judgement.verdict if gauge.judgement else None
    return {"failures": dict(gauge.failures), "port": gauge.port, "verdict": verdict}


def made(own: bool, **shape: Any) -> Any:
    model = tiny.llama(dropout=0.2 if own else 0.0, **shape).train()
    # something for DDP to broadcast, which ranks change each on their own
    model.register_buffer("seen", torch.zeros(()))
    return model


def watch(directory: Path, on_alarm: str = "log") -> ForceGauge:
    return ForceGauge(
        tiny.probe_set(5),
        tiny.tokenizer(),
        run="ranks",
        directory=directory,
        every=EVERY,
        budget=None,
        port=0,
        on_alarm=on_alarm,
    )


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, own: bool) -> None:
    which = step + (100 * distributed.get_rank() if own else 0)
    generator = torch.Generator().manual_seed(which)
    tokens = torch.randint(3, 34, (2, LENGTH), generator=generator)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for name, buffer in model.named_buffers():
        if name.endswith("seen"):
            buffer.add_(which)


PLACES: dict[str, tuple[Any, str]] = {
    "forward": (ways, "run"),
    "greedy": (behaviour, "greedy_decode"),
    "scorer": (prober, "Scorer"),
    "judge": (Phase, "probe"),
}


@contextmanager
def faulty(
    at: str = "forward", rank: int | None = None, calls: Sequence[int] = (), memory: bool = False
) -> Iterator[None]:
    """While it lasts, these calls of one of `PLACES` fail on a rank, or on all."""
    holder, name = PLACES[at]
    real, count = getattr(holder, name), itertools.count()

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(count) in range(*calls) and rank in (None, distributed.get_rank()):
            raise torch.OutOfMemoryError("no room") if memory else OSError("torn")
        return real(*args, **kwargs)

    if calls:
        setattr(holder, name, fail)
    try:
        yield
    finally:
        setattr(holder, name, real)


def plain(model: nn.Module) -> nn.Module:
    return model


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp2(model: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp2_head(model: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model.lm_head, mesh=mesh)
    return fsdp2(model)


def fsdp1(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    policy = ModuleWrapPolicy({LlamaDecoderLayer})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": plain,
    "ddp": ddp,
    "fsdp2": fsdp2,
    "fsdp2 head": fsdp2_head,
    "fsdp1": fsdp1,
}


def left(model: nn.Module, optimizer: Any) -> dict[str, str]:
    """What training left on this rank: its part of weights and optimizer state, of ZeRO's too."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer  # DeepSpeed's and Accelerate's stand around torch's
    weights = [getattr(each, "ds_tensor", each) for each in model.parameters()]
    state = list(optimizer.state.values())
    assert state
    return {"weights": digest([weights, *model.buffers()]), "optimizer": digest(state)}


def digest(tree: Any) -> str:
    """Of this rank's part of all tensors."""
    found = hashlib.sha256()
    for tensor in tensors(tree):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        found.update(local.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


if __name__ == "__main__":
    main()
