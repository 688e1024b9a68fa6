"""`forcegauge monitor snapshot` as people call it, and the page that it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forcegauge.errors import InputError
from forcegauge_monitor.cli import monitor

# torch's forward-mode AD imports what it deprecates itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def call(inputs: dict[str, str], *more: str) -> Result:
    names = ("checkpoint", "probes", "train")
    named = [part for name in names for part in (f"--{name}", inputs[name])]
    return CliRunner().invoke(
        monitor, ["snapshot", *named, *more], catch_exceptions=False, standalone_mode=False
    )


@pytest.fixture(scope="module")
def snapshot(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO snapshot with everything that a snapshot can have but Adam."""
    folder = tmp_path_factory.mktemp("snapshots") / "one"
    previous = ("--previous", inputs["previous"])
    more = ("--loss", "dpo", "--tokens", "--kernel-probes", "2", *previous, "-o", str(folder))
    assert "R² " in call(inputs, *more).output
    return folder


def test_plan_tells_memory_and_work_and_does_nothing(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    result = call(inputs, "--plan", "-o", str(tmp_path / "s"))
    assert re.search(r"Memory: \d+\.\d GiB at the peak, of \d+\.\d GiB", result.output)
    assert re.search(r"Work: [\d,]+ forward passes", result.output)
    assert not (tmp_path / "s").exists()


def test_the_memory_that_may_be_used_changes_the_plan(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    result = call(inputs, "--plan", "--memory", "1.5", "-o", str(tmp_path / "s"))
    assert "of 1.5 GiB that are free" in result.output


def test_a_finished_snapshot_is_left_alone(inputs: dict[str, str], snapshot: Path) -> None:
    more = ("--loss", "dpo", "--tokens", "--kernel-probes", "2", "--previous", inputs["previous"])
    assert "finished already" in call(inputs, *more, "-o", str(snapshot)).output


def test_peak_memory_is_told_with_what_was_planned(snapshot: Path) -> None:
    metrics = json.loads((snapshot / "metrics.json").read_text())
    assert metrics["peak_memory_bytes"] > 0
    assert metrics["plan"]["peak_bytes"] > 0


def test_tokens_of_a_pusher_add_up_to_its_sequence(snapshot: Path) -> None:
    for name, each in json.loads((snapshot / "pushers.json").read_text()).items():
        for sample in (*each["up"], *each["down"]):
            for side in sample["sides"].values():
                total = sum(value for _, value in side["tokens"])
                assert total == pytest.approx(side["nats"], rel=1e-3, abs=1e-3), name
                assert "".join(text for text, _ in side["tokens"]).startswith(side["text"])


def test_the_page_holds_everything_and_asks_for_nothing(snapshot: Path) -> None:
    html = (snapshot / "snapshot.html").read_text()
    for title in ("Who pushes what", "The kernel", "Predicted against measured", "Facts"):
        assert f"<h2>{title}</h2>" in html
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)
    assert "No reference model was given" in html


def test_from_the_second_snapshot_on_the_page_shows_stability_over_time(
    inputs: dict[str, str], snapshot: Path, tmp_path: Path
) -> None:
    more = ("--loss", "dpo", "--kernel-probes", "2", "--previous", str(snapshot))
    call(inputs, *more, "-o", str(tmp_path / "two"))
    assert "Stability over time" not in (snapshot / "snapshot.html").read_text()
    html = (tmp_path / "two" / "snapshot.html").read_text()
    assert "<h2>Stability over time</h2>" in html
    assert "<h2>Stability of the kernel</h2>" in html


def test_texts_cannot_act_in_the_page(inputs: dict[str, str], tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [{"prompt": attack, "completion": f"{attack} {n}"} for n in range(2)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    call({**inputs, "train": str(train)}, "--kernel-probes", "0", "-o", str(tmp_path / "s"))
    html = (tmp_path / "s" / "snapshot.html").read_text()
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<img" not in html


def test_a_file_without_usable_rows_is_the_users_mistake(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(InputError, match=re.escape(str(empty))):
        call({**inputs, "train": str(empty)}, "-o", str(tmp_path / "s"))


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "forcegauge_monitor.py").write_text("")
    program = "from forcegauge.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "monitor", "snapshot", "--plan"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("forcegauge: the monitor is not installed")
    assert "pip install 'forcegauge[monitor]'" in result.stderr
