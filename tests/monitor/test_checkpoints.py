"""Checkpoints of every kind are loaded with what was trained taking gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from forcegauge.checkpoints import load_checkpoint
from forcegauge.encoding import TokenSequence
from forcegauge.errors import InputError
from forcegauge_monitor.checkpoints import (
    skeleton,
    weight_step,
    without_adapter,
)
from forcegauge_monitor.job import tokenizer_of
from tests import tiny
from tests.monitor import tinies


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny.llama().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: Path, name: str, seed: int) -> Path:
    """A LoRA checkpoint beside its base, as a trainer saves it."""
    net = get_peft_model(load_checkpoint(str(base)), LoraConfig(target_modules=["q_proj"], r=2))
    net.peft_config["default"].base_model_name_or_path = str(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    net.save_pretrained(str(base.parent / name))
    return base.parent / name


def trained(net: nn.Module) -> list[str]:
    return [name for name, p in net.named_parameters() if p.requires_grad]


def test_every_weight_of_a_full_checkpoint_is_trained(base: Path) -> None:
    net = load_checkpoint(str(base))
    assert trained(net) == [name for name, _ in net.named_parameters()]
    assert not net.training


def test_a_sharded_checkpoint_is_the_same_model(base: Path, tmp_path: Path) -> None:
    net = load_checkpoint(str(base))
    net.save_pretrained(tmp_path / "shards", max_shard_size="20KB")  # type: ignore[operator]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = load_checkpoint(str(tmp_path / "shards"))
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_the_adapters_weights_of_an_adapter_are_trained(base: Path) -> None:
    net = load_checkpoint(str(adapter(base, "one", 0)))
    assert trained(net)
    assert all("lora_" in name for name in trained(net))
    item = TokenSequence(0, 0, (3, 4), (5, 6, 7))
    changed = tinies.logprobs(net, item)
    with without_adapter(net):
        plain = tinies.logprobs(net, item)
    assert torch.equal(plain, tinies.logprobs(load_checkpoint(str(base)), item))
    assert not torch.allclose(plain, changed)


def test_skeletons_have_the_models_parameters(base: Path) -> None:
    for path in (base, adapter(base, "one", 0)):
        net, empty = load_checkpoint(str(path)), skeleton(str(path))
        assert trained(empty) == trained(net)
        assert [p.shape for p in empty.parameters()] == [p.shape for p in net.parameters()]
        assert all(p.is_meta for p in empty.parameters())


def test_the_step_between_two_adapters(base: Path) -> None:
    one, other = adapter(base, "one", 0), adapter(base, "other", 1)
    before, after = load_checkpoint(str(one)), load_checkpoint(str(other))
    step = weight_step(before, str(other))
    assert list(step) == trained(before)
    for name, parameter in after.named_parameters():
        if name in step:
            torch.testing.assert_close(
                dict(before.named_parameters())[name] + step[name], parameter
            )


def test_checkpoints_that_train_different_weights_have_no_step(base: Path) -> None:
    with pytest.raises(InputError, match="do not train the same weights"):
        weight_step(load_checkpoint(str(adapter(base, "one", 0))), str(base))


def test_an_adapter_without_tokenizer_has_its_bases(base: Path) -> None:
    assert tokenizer_of(str(adapter(base, "one", 0))).eos_token == "<eos>"


def test_a_broken_adapter_is_one_clear_line(base: Path) -> None:
    path = adapter(base, "one", 0)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="adapter could not be loaded"):
        load_checkpoint(str(path))
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config.json|names no base"):
        load_checkpoint(str(path))
