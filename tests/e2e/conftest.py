"""One pair of demo runs, squeezed and healthy, that serves every test which needs a real run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from forcegauge.record import Line, probes_by_phase, read_record
from tests.e2e.alerting import Message, settle, watching
from tests.servers import Prometheus, free_port

DEMO_SECONDS = 3600


@dataclass(frozen=True)
class DemoRun:
    """A finished demo: where it is, what it printed, what Prometheus saw of it and the webhook
    heard of it meanwhile."""

    directory: Path
    printed: str
    series: dict[str, list[dict[str, object]]]
    heard: tuple[Message, ...]

    @property
    def lines(self) -> list[Line]:
        """Its record."""
        return read_record(self.directory)

    def probes(self, phase: str) -> list[Line]:
        """The probe lines of a phase, the baseline first."""
        return probes_by_phase(self.lines)[phase]

    def change(self, phase: str, response_type: str, statistic: str, probe: int = -1) -> float:
        """Change of a statistic's mean from the phase's baseline to a probe, by index."""
        first, then = self.probes(phase)[0], self.probes(phase)[probe]
        now, start = (p["scores"][response_type][statistic]["mean"] for p in (then, first))
        return float(now - start)


def demo(folder: Path, *options: str) -> DemoRun:
    folder.mkdir()
    port, run = free_port(), folder / "run"
    with watching(folder) as watch:
        program = str(Path(sys.executable).with_name("forcegauge"))
        done = subprocess.run(
            [program, "demo", "--port", str(port), "-o", str(run), *options],
            env={**os.environ, "FORCEGAUGE_MONITOR": watch.monitor},
            capture_output=True,
            text=True,
            timeout=DEMO_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        series = seen(watch.prometheus)
        settle()
    assert done.stderr == ""
    # 2 GB a run, which pytest would keep for three sessions
    for weights in run.glob("*/checkpoint-*/model.safetensors"):
        weights.unlink()
    return DemoRun(run, done.stdout, series, tuple(watch.heard))


def seen(scraping: Prometheus) -> dict[str, list[dict[str, object]]]:
    """What Prometheus kept of the run, which is over by now."""
    queries = (
        "max_over_time(forcegauge_train_step[1h])",
        "max_over_time(forcegauge_squeeze_nats[1h])",
        'min_over_time(forcegauge_logprob_change_nats{response_type="other_prompt"}[1h])',
        "max_over_time(forcegauge_run_state[1h])",
        'count(count by (__name__) (last_over_time({job="forcegauge",__name__=~"force.+"}[1h])))',
    )
    return {query: scraping.query(query) for query in queries}


@pytest.fixture(scope="session")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """`forcegauge demo`."""
    return demo(tmp_path_factory.mktemp("demo") / "squeezed")


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """`forcegauge demo --healthy`."""
    return demo(tmp_path_factory.mktemp("demo") / "healthy", "--healthy")
