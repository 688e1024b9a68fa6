"""bergson doing what direction hooks do: mean gradients of types as queries, samples scored."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from forcegauge.encoding import TokenSequence
from forcegauge_monitor.entk.attribution import row_products
from forcegauge_monitor.entk.rows import make_batches
from tests.benchmarks.scoring import TYPES


@dataclass
class Kept:
    """Where bergson's scorer writes: a table in memory."""

    scores: Tensor

    def __call__(self, indices: list[int], scores: Tensor, query_offset: int = 0) -> None:
        """Keep one batch's scores."""
        self.scores[indices, query_offset : query_offset + scores.shape[1]] = scores.cpu()


def label() -> str:
    """Its name with its version."""
    return f"bergson {metadata.version('bergson')}"


def prepared(probes: Sequence[TokenSequence], samples: Sequence[TokenSequence]) -> tuple[Any, Any]:
    """Datasets of each type's probes, and of the samples; raises `ImportError` without bergson."""
    import_module("bergson")
    logging.disable(logging.INFO)
    by_type = [[item for item in probes if item.type == place] for place in range(TYPES)]
    return [_dataset(items) for items in by_type], _dataset(samples)


def _dataset(items: Sequence[TokenSequence]) -> datasets.Dataset:
    rows = [
        {
            "input_ids": [*item.prompt, *item.response],
            "labels": [-100] * len(item.prompt) + list(item.response),
        }
        for item in items
    ]
    return datasets.Dataset.from_list(rows)


def queries(model: nn.Module, data: Sequence[Any], advance: Callable[[], object]) -> dict[str, Any]:
    """Each type's mean gradient by module, [types, numbers]."""
    found: dict[str, Tensor] = {}
    for place, each in enumerate(data):
        collector = _run(model, each, 1, aggregation="mean")
        for name, row in collector.gradients.items():
            kept = found.setdefault(name, torch.empty(TYPES, row.shape[1]))
            kept[place] = row[0]
        advance()
    return found


def scores(model: nn.Module, of: Mapping[str, Tensor], data: Any, rows: int) -> Tensor:
    """Products of every sample's gradient with the queries, [samples, types]."""
    kept = Kept(torch.zeros(len(data), TYPES))
    scorer = import_module("bergson").Scorer(
        of, list(of), kept, device=torch.device("cpu"), dtype=torch.float32
    )
    _run(model, data, rows, scorer=scorer)
    return kept.scores


def _run(model: nn.Module, data: Any, rows: int, *, aggregation: str = "none", **more: Any) -> Any:
    bergson = import_module("bergson")
    model.requires_grad_(False)
    # as bergson's own workers do: gradients must flow, and none of a weight is wanted
    model.get_input_embeddings().requires_grad_(True)  # type: ignore[operator]
    order = sorted(range(len(data)), key=lambda place: len(data[place]["input_ids"]))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    with tempfile.TemporaryDirectory() as folder:
        cfg = bergson.IndexConfig(run_path=folder, loss_reduction="mean")
        cfg.partial_run_path.mkdir(parents=True, exist_ok=True)
        collector = bergson.InMemoryCollector(
            model=model.base_model,
            data=data,
            cfg=cfg,
            preprocess_cfg=bergson.PreprocessConfig(aggregation=aggregation),
            **more,
        )
        computer = bergson.CollectorComputer(
            model, data, collector=collector, batches=batches, cfg=cfg
        )
        computer.run_with_collector_hooks()
    return collector


def share(model: nn.Module, of: Mapping[str, Tensor]) -> float:
    """Share of the parameters that it covers."""
    numbers = sum(each.shape[1] for each in of.values())
    return numbers / sum(p.numel() for p in model.parameters())


def check(model: nn.Module, made: Mapping[str, Any], samples: Sequence[TokenSequence]) -> float:
    """Largest difference to direction hooks on the same layers, over four samples, relative."""
    known = dict(model.base_model.named_parameters())  # type: ignore[union-attr]
    prefix = f"{model.base_model_prefix}."
    directions = {
        f"{prefix}{name}.weight": each.view(-1, *known[f"{name}.weight"].shape)
        for name, each in made["queries"].items()
    }
    [batch] = make_batches(samples[:4], 4)
    weights = [torch.full((len(item.response),), -1 / len(item.response)) for item in samples[:4]]
    found = row_products(model, batch, weights, directions)
    wanted = made["table"][list(batch.places)]
    return float((found - wanted).abs().max() / wanted.abs().max())
