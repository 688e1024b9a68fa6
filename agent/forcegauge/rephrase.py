"""Answers in other words, written by an instruct model that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from forcegauge.errors import InputError
from forcegauge.probes import RESPONSE_TYPES, Probe, ProbeSet

BATCH = 8
"""Answers that are rewritten together."""

REQUEST = (
    "Rewrite the answer below in other words. Keep its meaning, its language and its length. "
    "Reply with the rewritten answer only.\n\nQuestion: {question}\n\nAnswer: {answer}"
)
"""What the model is asked, as one user message."""

Advance = Callable[[int], None]


def load_writer(name: str) -> tuple[Any, Any]:
    """Model and tokenizer by folder or Hub name, on the GPU where there is one.

    Raises `InputError` for one that cannot be loaded or has no chat template.
    """
    from forcegauge.loading import load_model, load_tokenizer, pick_device

    tokenizer = load_tokenizer(name)
    if not tokenizer.chat_template:
        fix = "Name an instruct model"
        raise InputError("the tokenizer has no chat template", fix=fix, file=name)
    device = pick_device()
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    return load_model(name, dtype=dtype, device=device), tokenizer


def missing_rephrases(probe_set: ProbeSet) -> list[tuple[Probe, str]]:
    """Probe and answer (``chosen``, ``rejected``) of every answer that has no rephrase yet."""
    return [
        (probe, name)
        for probe in probe_set.probes
        for name in ("chosen", "rejected")
        if name in probe.responses and f"{name}_rephrase" not in probe.responses
    ]


def with_rephrases(
    probe_set: ProbeSet, model: Any, tokenizer: Any, *, advance: Advance | None = None
) -> ProbeSet:
    """The probe set with missing rephrases written by greedy decoding.

    A rephrase that is the answer itself, is empty, or does not come to an end within about twice
    the answer's length is left out. ``advance`` is told the number of answers after each batch.
    """
    wanted = missing_rephrases(probe_set)
    texts: dict[tuple[str, str], str] = {}
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        for (probe, name), text in zip(batch, _rewritten(batch, model, tokenizer), strict=True):
            if text and text not in probe.responses.values():
                texts[probe.id, name] = text
        if advance is not None:
            advance(len(batch))
    return ProbeSet(tuple(_with_texts(probe, texts) for probe in probe_set.probes))


def _with_texts(probe: Probe, texts: dict[tuple[str, str], str]) -> Probe:
    new = {f"{name}_rephrase": texts.get((probe.id, name)) for name in ("chosen", "rejected")}
    all_texts = {**probe.responses, **{name: text for name, text in new.items() if text}}
    return replace(probe, responses={n: all_texts[n] for n in RESPONSE_TYPES if n in all_texts})


def _rewritten(batch: Sequence[tuple[Probe, str]], model: Any, tokenizer: Any) -> list[str]:
    """The model's text for each answer; empty for one that did not come to an end."""
    import torch

    from forcegauge.encoding import encode_prompt, encode_response
    from forcegauge.greedy import greedy_decode, stop_tokens

    answers = [probe.responses[name] for probe, name in batch]
    requests = [_request(probe, text) for (probe, _), text in zip(batch, answers, strict=True)]
    prompts = [encode_prompt(tokenizer, request) for request in requests]
    room = 16 + 2 * max(len(encode_response(tokenizer, text)) for text in answers)
    stop = stop_tokens(model, tokenizer.eos_token_id)
    with torch.no_grad():
        outputs = greedy_decode(model, prompts, new_tokens=room, stop=stop)
    ended = [output if len(output) < room else [] for output in outputs]
    return [tokenizer.decode(output, skip_special_tokens=True).strip() for output in ended]


def _request(probe: Probe, answer: str) -> tuple[dict[str, str], ...]:
    question = probe.prompt if isinstance(probe.prompt, str) else probe.prompt[-1]["content"]
    content = REQUEST.format(question=question.strip(), answer=answer.strip())
    return ({"role": "user", "content": content},)
