"""A finetune in plain PyTorch with the agent in it: SFT on preference pairs' chosen answers.

The agent reads where it listens, the monitor and its token from FORCEGAUGE_* in the environment.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forcegauge import ForceGauge


def main() -> None:
    """Train for some steps, save a checkpoint now and then, and tell the agent of both."""
    given = arguments()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.learning_rate)
    rows = [json.loads(line) for line in Path(given.train).read_text().splitlines()]
    with ForceGauge(
        given.probes,
        tokenizer,
        directory=Path(given.output) / "forcegauge",
        phase="sft",
        loss="sft",
        train=given.train,
        every=given.every,
    ) as gauge:
        gauge.step(model, 0)
        for step, row in enumerate(itertools.islice(itertools.cycle(rows), given.steps), 1):
            text = row["prompt"] + row["chosen"]
            tokens = tokenizer(text, return_tensors="pt").input_ids
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            gauge.step(model, step, loss=loss.detach())
            if step % given.save_every == 0:
                folder = Path(given.output) / f"checkpoint-{step}"
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                gauge.saved(folder, step)
        gauge.finish(model, given.steps)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    for name in ("model", "probes", "train", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("steps", 100), ("every", 10), ("save-every", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
