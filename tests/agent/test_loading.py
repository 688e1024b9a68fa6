"""Models and tokenizers by folder: what loads, and one clear line for what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from forcegauge.errors import InputError
from forcegauge.loading import (
    checkpoint_step,
    checkpoints,
    load_model,
    load_tokenizer,
    pick_device,
)

Make = Callable[..., PreTrainedModel]


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Make, tokenizer: Any) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_loads_in_evaluation_mode(saved: Path) -> None:
    model = load_model(str(saved))
    assert not model.training
    assert model.dtype == torch.float32


def test_weights_load_in_the_asked_format(saved: Path) -> None:
    assert load_model(str(saved), dtype="bfloat16").dtype == torch.bfloat16


def test_a_saved_tokenizer_loads(saved: Path, tokenizer: Any) -> None:
    assert load_tokenizer(str(saved))("Hi") == tokenizer("Hi")


def test_a_tokenizer_loads_from_a_folder_of_its_own(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("Hi") == tokenizer("Hi")


def test_a_damaged_tokenizer_on_its_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "runs/a/checkpoint-3"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no such model folder"):
        load_model(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder holds no model"):
        load_model(str(tmp_path))


def test_a_file_is_no_model(saved: Path) -> None:
    with pytest.raises(InputError, match="a model is a folder"):
        load_model(str(saved / "config.json"))


def test_a_model_without_tokenizer_files_is_named(tmp_path: Path, tiny_model: Make) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "architecture"), [("t5", "T5ForConditionalGeneration"), ("bert", "BertForMaskedLM")]
)
def test_another_kind_of_model_is_named(tmp_path: Path, kind: str, architecture: str) -> None:
    AutoConfig.for_model(kind, architectures=[architecture]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{architecture} is no causal language model"):
        load_model(str(tmp_path))


def test_a_model_without_its_head_is_named(tmp_path: Path, tiny_model: Make) -> None:
    body = AutoModel.from_config(tiny_model("llama").config)
    body.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lack 1 weights, lm_head\.weight"):
        load_model(str(tmp_path))


def test_missing_weights_are_an_input_error(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the model could not be loaded"):
        load_model(str(saved))


def test_damaged_weights_are_an_input_error(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="the model could not be loaded"):
        load_model(str(saved))


def test_a_damaged_configuration_is_an_input_error(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match="no model could be found"):
        load_model(str(saved))


def test_an_unknown_kind_of_model_is_an_input_error(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps({"model_type": "no-such-kind"}))
    with pytest.raises(InputError, match="no model could be found"):
        load_model(str(saved))


def test_the_step_is_in_the_folders_name() -> None:
    assert checkpoint_step("run/checkpoint-120") == 120
    assert checkpoint_step("run/checkpoint-120-best") is None
    assert checkpoint_step("run/final") is None


def test_a_folder_of_checkpoints_is_all_of_them_in_order(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-best"):
        (tmp_path / name).mkdir()
    names = [Path(path).name for path in checkpoints(str(tmp_path))]
    assert names == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_any_other_name_stands_for_itself(tmp_path: Path) -> None:
    assert checkpoints(f"{tmp_path}/") == [str(tmp_path)]
    assert checkpoints("HuggingFaceTB/SmolLM2-135M") == ["HuggingFaceTB/SmolLM2-135M"]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "npu"])
def test_an_unknown_device_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match=f"--device: '{name}' is no device of this machine"):
        pick_device(name)


def test_the_cpu_is_always_a_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
