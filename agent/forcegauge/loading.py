"""Models and tokenizers by folder or name, with one clear line for what a user can mend."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from forcegauge.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the number formats that weights can be loaded in."""

_OTHER_HEADS = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def checkpoint_step(path: str | Path) -> int | None:
    """N for a folder named ``checkpoint-N``, else None."""
    match = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    return int(match[1]) if match else None


def checkpoints(name: str) -> list[str]:
    """The model folders that a name stands for: a folder of ``checkpoint-N`` folders stands for
    all of them in the order of N, anything else for itself."""
    folder = Path(name)
    found = [path for path in folder.glob("checkpoint-*") if checkpoint_step(path) is not None]
    if not found:
        return [name.rstrip("/") or name]
    return [str(path) for path in sorted(found, key=lambda path: checkpoint_step(path) or 0)]


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name; without a name CUDA where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"{name!r} is no device of this machine",
            fix="Use cpu, cuda or cuda:N",
            field="--device",
        ) from None
    return device


def load_tokenizer(name: str) -> Any:
    """The tokenizer beside a model or alone in a folder; raises `InputError` for none."""
    if not any((Path(name) / file).is_file() for file in _TOKENIZER_FILES):
        _check_folder(name)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"no tokenizer could be loaded ({_first_line(error)})",
            fix="Save the model's tokenizer into the same folder (tokenizer.save_pretrained)",
            file=name,
        ) from None


def load_model(
    name: str, *, dtype: str = "float32", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A causal language model in evaluation mode; ``dtype`` is a key of `DTYPES`.

    Raises `InputError` for what is missing, is no causal language model, or lacks weights.
    """
    check_causal(name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=DTYPES[dtype], output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the model could not be loaded ({_first_line(error)})",
            fix="Give the folder of a causal language model saved with save_pretrained, or its name"
            " on the model hub",
            file=name,
        ) from None
    model, info = loaded
    if missing := sorted(info.get("missing_keys", ())):
        raise InputError(
            f"the model's files lack {len(missing)} weights, {missing[0]} among them",
            fix="Give a complete checkpoint of a causal language model",
            file=name,
        )
    found: PreTrainedModel = model.to(device).eval()
    return found


def _check_folder(name: str) -> None:
    """A path that is not there must not be asked of the model hub as if it were a name."""
    folder = Path(name)
    looks_local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not folder.exists() and (looks_local or not name):
        raise InputError("no such model folder", fix="Check the path", file=name)
    if folder.exists() and not folder.is_dir():
        raise InputError("a model is a folder and this is a file", fix="Give its folder", file=name)
    files = ("config.json", "adapter_config.json")
    if folder.is_dir() and not any((folder / file).exists() for file in files):
        raise InputError(
            "the folder holds no model (no config.json)",
            fix="Give a folder written by save_pretrained, or one of checkpoint-N folders",
            file=name,
        )
    adapter = folder / "adapter_config.json"
    if adapter.exists() and importlib.util.find_spec("peft") is None:
        raise InputError("the model is an adapter", fix="Install peft", file=name)


def check_causal(name: str) -> None:
    """Raise `InputError` for a name that stands for no causal language model, before loading it."""
    _check_folder(name)
    if (Path(name) / "adapter_config.json").exists():
        return
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no model could be found ({_first_line(error)})",
            fix="Check the folder or the name; a name needs access to the model hub",
            file=name,
        ) from None
    kinds = getattr(config, "architectures", None) or []
    if config.is_encoder_decoder or (kinds and all(k.endswith(_OTHER_HEADS) for k in kinds)):
        raise InputError(
            f"{', '.join(kinds) or config.model_type} is no causal language model",
            fix="Give a model that continues text (its class ends with ForCausalLM)",
            file=name,
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")[:200]
