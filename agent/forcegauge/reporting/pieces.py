"""Token ids as pieces of text, with a tokenizer that lies on this machine, if one does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Pieces = Callable[[Sequence[int]], list[str]]
"""Token ids to one text each; a token that ends no character has an empty one."""

FILE = "tokenizer.json"


def numbers(ids: Sequence[int]) -> list[str]:
    """Token ids where nobody can read them."""
    return [f"#{token}" for token in ids]


def reader(model: str, checkpoints: Iterable[str]) -> Pieces | None:
    """Reads tokens with the tokenizer of the model or of a checkpoint; nothing is downloaded."""
    for path in _places(model, checkpoints):
        if path.is_file():
            tokenizer = _load(path)
            if tokenizer is not None:
                return lambda ids, used=tokenizer: _pieces(used, ids)  # type: ignore[misc]
    return None


def _places(model: str, checkpoints: Iterable[str]) -> Iterator[Path]:
    for folder in (model, *checkpoints):
        if folder:
            yield Path(folder) / FILE
    cached = _in_hub_cache(model)
    if cached is not None:
        yield cached


def _in_hub_cache(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        json.loads(path.read_text(encoding="utf-8"))
        return Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  tokenizers raises nothing narrower
        return None


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    known = tokenizer.get_vocab_size()
    return [(stream.step(tokenizer, int(t)) or "") if t < known else f"#{t}" for t in ids]
