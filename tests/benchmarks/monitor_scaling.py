"""One snapshot with one worker and with two: `make bench-scaling`, some minutes on quiet cores.

Tensor work is what a worker spends inside a piece, loading the model included; the rest is
messages, Redis, planning, merging, and waiting for the other worker at the end of a stage.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny
from tests.monitor.fleet import Fleet, fleet
from tests.servers import wait_for

PROBES, SAMPLES, TURNS = 6, 24, 2


def make_inputs(folder: Path, layers: int = 6) -> dict[str, str]:
    """A random Llama of 3.4 million weights a layer, probes of most types, and pairs."""
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=len(tiny.LETTERS) + 3,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "checkpoint-1")
    tiny.tokenizer().save_pretrained(folder / "checkpoint-1")
    tiny.probe_set(PROBES).save(folder / "probes.jsonl")
    words = [f"{one} and {other}" for one in tiny.WORDS for other in tiny.WORDS]
    rows = [
        {"prompt": f"what of {word}?", "chosen": f"{word} " * 6, "rejected": f"no {word} " * 6}
        for word in words[:SAMPLES]
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"checkpoint": "checkpoint-1", "probes": "probes.jsonl", "train": "train.jsonl"}
    return {name: str(folder / file) for name, file in names.items()}


def taken(one: Fleet, inputs: dict[str, str], run: str) -> tuple[float, float, int]:
    """Seconds of a snapshot from its begin to its end, those inside pieces, and pieces."""
    facts = {name: inputs[name] for name in ("probes", "train")} | {"loss": "dpo"}
    one.insist("POST", "/runs", {"run": run, "record_id": run, **facts})
    body = {"checkpoint": inputs["checkpoint"], "step": 1}
    key = one.insist("POST", f"/runs/{run}/snapshots", body)["id"]
    wait_for(lambda: not one.store.dead() and one.states({run: key})[run] == "done", 900)
    found = one.store.snapshot(run, key)
    assert found is not None
    assert found.started is not None
    assert found.finished is not None
    logs = "".join(path.read_text() for path in one.folder.glob("worker-*.log"))
    pieces = [float(each) for each in re.findall(rf"{run}/{key}: \S+ took ([\d.]+) s", logs)]
    return found.finished - found.started, sum(pieces), len(pieces)


def measured(folder: Path, inputs: dict[str, str], workers: int) -> str:
    """A line about one snapshot, after one that has the workers import what they need."""
    root = str(Path(inputs["probes"]).parent)
    with fleet(folder, workers=workers, roots=root, kernel_probes=4) as one:
        wait_for(lambda: len(one.store.workers()) == workers, 120)
        taken(one, inputs, "warm")
        wall, inside, pieces = taken(one, inputs, "timed")
    share = 1 - inside / (workers * wall)
    line = f"{workers} workers: {wall:.1f} s, {inside:.1f} s inside {pieces} pieces"
    return f"{line}, outside {share:.1%}"


def main() -> None:
    """Measure in turns and print a line for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder / "inputs")
        for turn in range(TURNS):
            for workers in (1, 2):
                print(measured(folder / f"{turn}-{workers}", inputs, workers), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
