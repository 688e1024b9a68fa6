"""Zero-code attach: a script that knows nothing of the gauge gets one by the environment alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.abc import Loader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from forcegauge import attach
from forcegauge.errors import InputError
from forcegauge.integrations import lightning as for_lightning
from forcegauge.record import probes_by_phase, read_record
from tests import tiny
from tests.agent import test_lightning as lit

pytestmark = lit.pytestmark


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.probe_set().save(tmp_path / "probes.jsonl")
    monkeypatch.setenv("FORCEGAUGE_PROBES", str(tmp_path / "probes.jsonl"))
    monkeypatch.setenv("FORCEGAUGE_PORT", "0")
    return tmp_path / "probes.jsonl"


def steps(directory: Path) -> list[int]:
    return [line["step"] for line in probes_by_phase(read_record(directory))["train"]]


def attached(tmp_path: Path, module: Any, *callbacks: Any) -> None:
    module.tokenizer = tiny.tokenizer()
    lit.fit(tmp_path, *callbacks, module=module, steps=4)


def test_lightning_finds_the_hook_among_entry_points() -> None:
    found = entry_points(group="lightning.pytorch.callbacks_factory", name="forcegauge")
    assert [each.value for each in found] == ["forcegauge.attach:lightning_callbacks"]


def test_the_hook_imports_nothing_and_does_nothing_without_the_variable() -> None:
    code = (
        "import sys; from forcegauge.attach import lightning_callbacks as found; "
        "assert found() == []; "
        "heavy = {'torch', 'transformers', 'lightning', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": _path()})


def _path() -> str:
    return ":".join(sys.path)


def test_a_lightning_training_is_watched_by_the_variable_alone(
    tmp_path: Path, probes: Path
) -> None:
    attached(tmp_path, lit.Tuned())
    assert steps(tmp_path / "forcegauge") == [0, 1, 2, 4]


def test_a_lightning_script_with_a_callback_of_its_own_keeps_it(
    tmp_path: Path, probes: Path
) -> None:
    attached(tmp_path, lit.Tuned(), lit.callback(tmp_path / "own", every=1))
    assert steps(tmp_path / "own") == [0, 1, 2, 3, 4]
    assert not (tmp_path / "forcegauge").exists()


def test_a_probe_file_that_is_not_there_is_said_and_lightning_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FORCEGAUGE_PROBES", str(tmp_path / "none.jsonl"))
    module = lit.Tuned()
    attached(tmp_path, module)
    assert len(module.losses) == 4
    assert "not attached, training goes on" in caplog.text


class Wordless(pl.LightningModule):
    """Trains something that is no language model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


def test_the_trained_language_model_of_a_module_is_found() -> None:
    module = lit.Tuned()
    module.reference = tiny.llama().requires_grad_(False)
    module._modules = {"reference": module.reference, "net": module.net}
    assert for_lightning.language_model(module) == "net"
    assert for_lightning.language_model(Wordless()) == "model"


def test_without_a_tokenizer_lightning_trains_and_that_is_said(
    tmp_path: Path, probes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = lit.Tuned()
    lit.fit(tmp_path, module=module, steps=2)
    assert len(module.losses) == 2
    assert "not attached, training goes on" in caplog.text


SCRIPT = """
import os, sys
assert "transformers" not in sys.modules
from transformers import Trainer, TrainingArguments
from tests import tiny
words = tiny.tokenizer()
rows = [dict(words(f"what of {word}?"[:14]), labels=words(word.ljust(14)[:14])["input_ids"])
        for word in tiny.WORDS]
settings = TrainingArguments(
    sys.argv[1], max_steps=5, per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True,
    report_to="none", save_strategy="no", dataloader_pin_memory=False)
made = Trainer(tiny.llama(), settings, train_dataset=rows, processing_class=words)
if "--own" in sys.argv:
    from forcegauge import ForceGaugeCallback
    probes = os.environ["FORCEGAUGE_PROBES"]
    made.add_callback(ForceGaugeCallback(probes, directory="own", every=2, budget=None))
made.train()
print("done at", made.state.global_step, __name__, sys.argv[1:])
"""


def launch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "forcegauge.attach", *arguments]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{folder}:{_path()}",
        "FORCEGAUGE_PORT": "0",
    }
    return subprocess.run(
        command, cwd=folder, env={**env, **environment}, capture_output=True, text=True, timeout=300
    )


def test_a_transformers_script_is_watched_without_a_change(tmp_path: Path, probes: Path) -> None:
    done = launch(tmp_path, "train.py", "out", FORCEGAUGE_PROBES=str(probes))
    assert done.returncode == 0, done.stderr
    assert "done at 5 __main__ ['out']" in done.stdout
    assert steps(tmp_path / "out" / "forcegauge") == [0, 1, 2, 4, 5]


def test_a_transformers_module_with_a_callback_of_its_own_keeps_it(
    tmp_path: Path, probes: Path
) -> None:
    done = launch(tmp_path, "-m", "train", "out", "--own", FORCEGAUGE_PROBES=str(probes))
    assert done.returncode == 0, done.stderr
    assert "done at 5 __main__ ['out', '--own']" in done.stdout
    assert steps(tmp_path / "own") == [0, 1, 2, 4, 5]
    assert not (tmp_path / "out" / "forcegauge").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no script is named"),
        (["-m"], "no script is named"),
        (["none.py"], r"none\.py: no such script"),
        (["train.py"], "FORCEGAUGE_PROBES: no probe file is named"),
    ],
)
def test_a_launcher_that_cannot_begin_says_why(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCEGAUGE_PROBES", raising=False)
    (tmp_path / "train.py").touch()
    with pytest.raises(InputError, match=said):
        attach.run(arguments)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = launch(tmp_path, "train.py", FORCEGAUGE_PROBES="none.jsonl")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("forcegauge: none.jsonl")


def test_a_transformers_without_default_callbacks_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Empty(Loader):
        def exec_module(self, module: Any) -> None: ...

    with caplog.at_level(logging.ERROR):
        attach._Patched(Empty()).exec_module(type(sys)("transformers.trainer"))
    assert "not attached, training goes on" in caplog.text
