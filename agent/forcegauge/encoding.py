"""Probes as token sequences: prompt and response tokenised apart, then put one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forcegauge.errors import InputError
from forcegauge.probes import ProbeSet, Prompt


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with one response as token ids; ``eos`` when the last id is an appended EOS."""

    probe: int
    type: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    eos: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode_prompt(tokenizer: Any, prompt: Prompt | Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a prompt, never empty.

    Messages go through the chat template with a generation prompt; plain text gets the special
    tokens that the tokenizer puts in front (none behind); an empty prompt is BOS, or else EOS.
    """
    if not isinstance(prompt, str):
        return _encode_messages(tokenizer, prompt)
    start = _leading_specials(tokenizer, prompt) if prompt else []
    if start:
        return start
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise InputError(
        "an empty prompt needs a BOS or EOS token and the tokenizer has neither",
        fix="Give the prompt a text",
        field="prompt",
    )


def _encode_messages(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the prompts are chat messages and the tokenizer has no chat template",
            fix="Use plain text prompts, or a tokenizer with a chat template",
            field="prompt",
        )
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    return [int(token) for token in ids]


def _leading_specials(tokenizer: Any, text: str) -> list[int]:
    """The text's ids with special tokens before it but not after it (some tokenizers add EOS)."""
    bare = _plain(tokenizer, text)
    ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids


def _plain(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def encode_response(tokenizer: Any, text: str, *, append_eos: bool = False) -> list[int]:
    """Token ids of a response without special tokens; EOS behind it when asked."""
    ids = _plain(tokenizer, text)
    if not append_eos:
        return ids
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token", fix="Leave out --append-eos")
    return [*ids, int(tokenizer.eos_token_id)]


def encode_probes(
    probe_set: ProbeSet,
    tokenizer: Any,
    *,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    append_eos: bool = False,
) -> list[TokenSequence]:
    """Every probe with each of its responses, by probe and then by type.

    Truncation keeps the end of a prompt and the start of a response; EOS counts as a token.
    """
    types = probe_set.types
    sequences = []
    for index, probe in enumerate(probe_set.probes):
        prompt = encode_prompt(tokenizer, probe.prompt)[-(max_prompt_tokens or 0) :]
        for place, name in enumerate(types):
            if name not in probe.responses:
                continue
            ids = encode_response(tokenizer, probe.responses[name], append_eos=append_eos)
            kept = ids[:max_response_tokens]
            if not kept or (append_eos and len(ids) == 1):
                raise InputError(
                    f"probe {probe.id!r}: the response has no tokens",
                    fix="Give it a text or leave it out",
                    field=name,
                )
            eos = append_eos and len(kept) == len(ids)
            sequences.append(TokenSequence(index, place, tuple(prompt), tuple(kept), eos))
    return sequences


def check_fits(
    sequences: Sequence[TokenSequence],
    probe_set: ProbeSet,
    context: int | None,
    vocabulary: int | None,
) -> None:
    """Raise `InputError` for a sequence that the model cannot take.

    ``context`` is the model's context and ``vocabulary`` its size in tokens, None where unknown.
    """
    for item in sequences:
        if context is not None and len(item) > context:
            raise InputError(
                f"probe {probe_set.probes[item.probe].id!r}, {probe_set.types[item.type]}: prompt "
                f"and response have {len(item)} tokens and the model's context is {context}",
                fix="Set --max-prompt-tokens and --max-response-tokens (max_prompt_tokens, "
                "max_response_tokens), or shorten the probe",
            )
        if vocabulary is not None and max(*item.prompt, *item.response) >= vocabulary:
            raise InputError(
                f"the tokenizer gives token {max(*item.prompt, *item.response)} and the model "
                f"knows {vocabulary} tokens",
                fix="Use the model's own tokenizer",
            )
