"""What a trainer knows of the training, for the run's recorded settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forcegauge.integrations.rates import first_rate

if TYPE_CHECKING:
    from transformers import TrainingArguments


def of_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Learning rate, schedule, sequences per optimizer step and length, as transformers' arguments
    have them."""
    sequences = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    length = {"max_steps": args.max_steps} if args.max_steps > 0 else {}
    return {
        "learning_rate": args.learning_rate,
        "lr_scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "batch_size": sequences,
        **(length or {"epochs": args.num_train_epochs}),
    }


def of_lightning(trainer: Any) -> dict[str, Any]:
    """The same from Lightning's trainer, as far as it knows."""
    rates = [first_rate(each) for each in trainer.optimizers[:1]]
    rows = getattr(trainer.train_dataloader, "batch_size", None)
    per_step = trainer.accumulate_grad_batches * trainer.world_size
    known = {
        "learning_rate": next(iter(rates), None),
        "batch_size": rows * per_step if isinstance(rows, int) else None,
        "max_steps": trainer.max_steps if trainer.max_steps > 0 else None,
        "epochs": trainer.max_epochs if trainer.max_steps <= 0 else None,
        "precision": str(trainer.precision),
    }
    return {name: value for name, value in known.items() if value is not None}
