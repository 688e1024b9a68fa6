"""What a probe file holds: counts, lengths, and what is wrong or doubtful in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from forcegauge.encoding import encode_prompt, encode_response
from forcegauge.errors import InputError
from forcegauge.probes import FILE_TYPES, Probe, numbered_probes

Numbered = tuple[int, Probe]


@dataclass(frozen=True)
class Lengths:
    """Lengths of all prompts or of all responses of one type, and how many a limit would cut."""

    values: Sequence[int]
    cut: int

    @property
    def quantiles(self) -> tuple[str, str, str]:
        """Least, median and greatest length, to be printed."""
        values = self.values
        return str(min(values)), str(median_low(values)), str(max(values))


@dataclass(frozen=True)
class ProbeCheck:
    """Lengths by what was measured (``prompt`` or a response type), warnings and errors."""

    unit: str
    lengths: Mapping[str, Lengths]
    warnings: Sequence[str]
    errors: Sequence[InputError] = ()


def check_probes(
    path: str | Path,
    tokenizer: Any | None = None,
    *,
    context: int | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> ProbeCheck:
    """Check a probe file; lengths are in tokens, or in words without a tokenizer.

    ``context`` is the model's context in tokens. A prompt that leaves no room in it for its
    responses is an error. Raises `InputError` for a file that cannot be loaded.
    """
    probes = numbered_probes(path)
    warnings = [*_repeats(probes), *_endings(probes), *_absent(probes)]
    if tokenizer is None:
        words = [_counted(probe, lambda text: len(text.split())) for _, probe in probes]
        return ProbeCheck("words", _lengths(words, None, None), warnings)
    counts = [_tokens(path, line, probe, tokenizer) for line, probe in probes]
    errors = _too_long(path, probes, counts, context, max_prompt_tokens, max_response_tokens)
    lengths = _lengths(counts, max_prompt_tokens, max_response_tokens)
    return ProbeCheck("tokens", lengths, warnings, errors)


def _counted(probe: Probe, count: Callable[[str], int]) -> dict[str, int]:
    prompt = probe.prompt
    contents = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
    responses = {name: count(text) for name, text in probe.responses.items()}
    return {"prompt": sum(count(text) for text in contents), **responses}


def _tokens(path: str | Path, line: int, probe: Probe, tokenizer: Any) -> dict[str, int]:
    try:
        prompt = len(encode_prompt(tokenizer, probe.prompt))
    except InputError as error:
        raise InputError(str(error).rstrip("."), file=path, line=line) from None
    responses = {
        name: len(encode_response(tokenizer, text)) for name, text in probe.responses.items()
    }
    return {"prompt": prompt, **responses}


def _lengths(
    counts: Sequence[Mapping[str, int]], max_prompt: int | None, max_response: int | None
) -> dict[str, Lengths]:
    found = {}
    for name in ("prompt", *FILE_TYPES):
        values = [row[name] for row in counts if name in row]
        limit = max_prompt if name == "prompt" else max_response
        if values:
            found[name] = Lengths(values, sum(value > (limit or value) for value in values))
    return found


def _too_long(
    path: str | Path,
    probes: Sequence[Numbered],
    counts: Sequence[Mapping[str, int]],
    context: int | None,
    max_prompt: int | None,
    max_response: int | None,
) -> list[InputError]:
    """One error for each probe whose prompt and longest response do not fit into the context."""
    errors = []
    for (line, probe), row in zip(probes, counts, strict=True):
        prompt = min(row["prompt"], max_prompt or row["prompt"])
        name = max(probe.responses, key=lambda response: row[response])
        response = min(row[name], max_response or row[name])
        if context is not None and prompt + response > context:
            problem = (
                f"{prompt} tokens of prompt and {response} of {name} do not fit into the "
                f"model's context of {context}"
            )
            fix = "Set --max-prompt-tokens and --max-response-tokens, or shorten the probe"
            errors.append(InputError(problem, fix=fix, file=path, line=line, field="prompt"))
    return errors


def _repeats(probes: Iterable[Numbered]) -> Iterator[str]:
    lines: dict[str, int] = {}
    for line, probe in probes:
        key = json.dumps(probe.prompt, sort_keys=True)
        if lines.setdefault(key, line) != line:
            yield f"line {line}: the prompt is the same as on line {lines[key]}"
        firsts: dict[str, str] = {}
        for name, text in probe.responses.items():
            if firsts.setdefault(text.strip(), name) != name:
                yield f"line {line}: {name} is the same text as {firsts[text.strip()]}"


def _endings(probes: Iterable[Numbered]) -> Iterator[str]:
    for line, probe in probes:
        if not isinstance(probe.prompt, str) and probe.prompt[-1]["role"] == "assistant":
            yield f"line {line}: the prompt ends with an assistant message, not a question"


def _absent(probes: Sequence[Numbered]) -> Iterator[str]:
    present = {name for _, probe in probes for name in probe.responses}
    absent = [name for name in FILE_TYPES if name not in present]
    if absent:
        yield f"no probe has {', '.join(absent)}: signals that need them will be absent"
