"""The two trainings of the demo, as a user of TRL would write them; the gauge is one line each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcegauge.build import build_probes
from forcegauge.pairs_input import Pair, read_pairs
from forcegauge.probes import ProbeSet

PAIRS = Path(__file__).with_name("pairs.jsonl")
HELD_OUT = Path(__file__).with_name("held_out.jsonl")


@dataclass(frozen=True)
class Recipe:
    """Settings that squeeze within minutes; ``healthy`` changes what SFT learns, nothing else.

    With SFT on chosen answers alone the rejected ones are unlikely when DPO pushes them down: it
    pushes in the valley. SFT on both first lifts them out of it (the paper's remedy); each answer
    is seen as often, hence in twice the steps.
    """

    healthy: bool = False
    pairs: int = 32
    probes: int = 12
    batch: int = 4
    sft_steps: int = 20
    sft_rate: float = 1e-4
    dpo_steps: int = 24
    dpo_rate: float = 3e-5
    dpo_warmup: int = 4
    beta: float = 0.1
    seed: int = 0

    @property
    def sft_answers(self) -> tuple[str, ...]:
        """Response types that SFT trains on."""
        return ("chosen", "rejected") if self.healthy else ("chosen",)

    @property
    def steps(self) -> dict[str, int]:
        """Optimizer steps of each phase, by its name."""
        return {"sft": self.sft_steps * len(self.sft_answers), "dpo": self.dpo_steps}


def training_pairs(recipe: Recipe) -> list[Pair]:
    """The pairs that both phases train on: evenly spread over the topics of the file."""
    pairs = read_pairs(str(PAIRS)).pairs
    return [pairs[row * len(pairs) // recipe.pairs] for row in range(recipe.pairs)]


def demo_probes(recipe: Recipe) -> ProbeSet:
    """Probes that ask some of the training prompts."""
    held_out = read_pairs(str(HELD_OUT)).pairs
    return build_probes(training_pairs(recipe), held_out, n=recipe.probes, seed=recipe.seed)


def sft_trainer(recipe: Recipe, model: Any, tokenizer: Any, output: Path) -> Any:
    """TRL's SFTTrainer on the chosen answers, for the healthy recipe on the rejected ones too."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": _messages(pair), "completion": _answer(pair, name)}
        for pair in training_pairs(recipe)
        for name in recipe.sft_answers
    ]
    args = SFTConfig(
        **_common(recipe, output / "sft"),
        max_steps=recipe.steps["sft"],
        save_steps=recipe.steps["sft"],
        learning_rate=recipe.sft_rate,
        per_device_train_batch_size=recipe.batch,
    )
    return SFTTrainer(
        model=model, args=args, train_dataset=_dataset(rows), processing_class=tokenizer
    )


def dpo_trainer(recipe: Recipe, model: Any, tokenizer: Any, output: Path) -> Any:
    """TRL's DPOTrainer; it computes the reference's log-probs once, before the first step."""
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": _messages(pair),
            **{name: _answer(pair, name) for name in ("chosen", "rejected")},
        }
        for pair in training_pairs(recipe)
    ]
    args = DPOConfig(
        **_common(recipe, output / "dpo"),
        max_steps=recipe.steps["dpo"],
        save_steps=recipe.steps["dpo"] // 2,
        learning_rate=recipe.dpo_rate,
        warmup_steps=recipe.dpo_warmup,
        per_device_train_batch_size=recipe.batch,
        beta=recipe.beta,
        precompute_ref_log_probs=True,
    )
    return DPOTrainer(
        model=model, args=args, train_dataset=_dataset(rows), processing_class=tokenizer
    )


def _common(recipe: Recipe, output: Path) -> dict[str, Any]:
    import torch

    from forcegauge.products import widened

    return {
        "output_dir": str(output),
        "seed": recipe.seed,
        # where a CPU has no bfloat16 products, they take eight times as long as float32's
        "bf16": torch.cuda.is_available() or not widened(torch.bfloat16),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_only_model": True,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _messages(pair: Pair) -> list[dict[str, str]]:
    return [dict(message) for message in pair.prompt if not isinstance(message, str)]


def _answer(pair: Pair, name: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": pair.responses[name]}]
