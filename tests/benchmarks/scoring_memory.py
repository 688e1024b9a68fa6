"""Peak memory of each way of scoring, in a process whose allocator gives freed memory back at once.

glibc keeps what is freed for the next allocation, so that a process grows by more than a pass holds
at any time, and by how much depends on what ran before. Here it keeps nothing above a megabyte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import torch

from tests.benchmarks import scoring
from tests.benchmarks.measuring import Row, measure

NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}


def peaks(case: scoring.Case, batches: Mapping[str, int]) -> dict[str, float]:
    """MiB above what stood before a pass, by way; ``batches`` are the sizes of the other ways."""
    asked = json.dumps([case.model, case.shape, case.dtype, case.prompts, dict(batches)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scoring_memory", asked],
        env=os.environ | NOTHING_KEPT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.no_grad()
def main(asked: str) -> None:
    """Measure one case and print its peaks as JSON."""
    name, shape, dtype, prompts, batches = json.loads(asked)
    scoring.quiet()
    prepared = scoring.prepare(name, shape, dtype, prompts)
    calls = dict(scoring.own_calls(prepared))
    for way, size in batches.items():
        calls[way] = partial(scoring.OTHERS[way], prepared.model, prepared.sequences, size)
    # what is made once, such as a library's own tables, is no part of a pass
    scoring.ours(prepared.model, prepared.sequences[:2], "shared", prepared.head)
    found = {}
    for way, call in calls.items():
        row = Row(way)
        measure(row, call, prepared.lengths, None)
        found[way] = row.grown_mib
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
