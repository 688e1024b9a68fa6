"""Checkpoints: full ones, adapters and a trainer's own shards (DCP, ZeRO), as they were trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from forcegauge.checkpoint_shards import dcp_folder, is_deepspeed, load_dcp, load_deepspeed
from forcegauge.errors import InputError
from forcegauge.loading import DTYPES, load_model


def is_adapter(folder: str | Path) -> bool:
    """Whether the checkpoint is a PEFT adapter beside a base model."""
    return (Path(folder) / "adapter_config.json").is_file()


def is_sharded(folder: str | Path) -> bool:
    """Whether its weights are in shards that a trainer wrote for itself (DCP, DeepSpeed)."""
    place = Path(folder)
    saved = any(place.glob("model*.safetensors")) or is_adapter(place)
    return not saved and (dcp_folder(place) is not None or is_deepspeed(place))


def load_checkpoint(
    name: str,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    like: str | None = None,
) -> nn.Module:
    """The model in evaluation mode; what was trained takes gradients: every weight of a full
    checkpoint, an adapter's own weights of an adapter.

    A trainer's own shards hold no settings of the model: without a config.json beside them or in
    the folder above, they are those of the model ``like``. Raises `InputError` for what cannot be
    loaded.
    """
    if is_sharded(name):
        return _load_sharded(Path(name), dtype, like).to(device).requires_grad_().eval()
    if not is_adapter(name):
        return load_model(name, dtype=dtype, device=device).requires_grad_()
    from peft import PeftModel

    base = load_model(base_of(name), dtype=dtype)
    try:
        model = PeftModel.from_pretrained(base, name, is_trainable=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"the adapter could not be loaded ({reason})", file=name) from None
    found: nn.Module = model.to(device).eval()
    return found


def _load_sharded(folder: Path, dtype: str, like: str | None) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(settings_of(folder, like))
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    if shards := dcp_folder(folder):
        load_dcp(model, shards)
    else:
        load_deepspeed(model, folder)
    return model


def settings_of(folder: Path, like: str | None) -> str:
    """Where a model's settings are that its checkpoint has not; raises `InputError` for nowhere."""
    for place in (folder, folder.parent):
        if (place / "config.json").is_file():
            return str(place)
    if like is None:
        fix = "Name the model that was trained as --baseline, or put its config.json beside"
        raise InputError("the shards come without the model's config.json", file=folder, fix=fix)
    return like


def tokenizer_place(folder: Path, like: str | None) -> str:
    """Where a checkpoint's tokenizer is: in it, beside its base, in the folder above, or with the
    model ``like``."""
    places = [str(folder), base_of(str(folder)) if is_adapter(folder) else "", str(folder.parent)]
    there = (one for one in places if (Path(one) / "tokenizer_config.json").is_file())
    return next(there, None) or like or places[1] or places[0]


def base_of(name: str) -> str:
    """The base model that an adapter names; raises `InputError` when it names none."""
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"adapter_config.json cannot be read ({error})", file=name) from None
    if not base:
        raise InputError("the adapter names no base model", file=name)
    return str(base)
