"""Prompts and responses as token ids."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from forcegauge.encoding import TokenSequence, encode_probes, encode_prompt, encode_response
from forcegauge.errors import InputError
from forcegauge.probes import Probe, ProbeSet

from .conftest import make_tokenizer


def with_specials(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    post = TemplateProcessing(single=template, special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = post
    return tokenizer


def text(tokenizer: PreTrainedTokenizerFast, ids: list[int] | tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


def probes(prompt: str, **responses: str) -> ProbeSet:
    return ProbeSet((Probe("p1", prompt, responses),))


def test_a_prompt_gets_the_special_tokens_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(with_specials(tokenizer, "<s> $A"), "Hi")
    assert text(tokenizer, ids) == "<s>Hi"


def test_a_prompt_gets_no_special_tokens_behind_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(with_specials(tokenizer, "<s> $A </s>"), "Hi")
    assert text(tokenizer, ids) == "<s>Hi"


def test_a_response_gets_no_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_response(with_specials(tokenizer, "<s> $A </s>"), "Hi")
    assert text(tokenizer, ids) == "Hi"


def test_an_eos_is_appended_when_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    assert text(tokenizer, encode_response(tokenizer, "Hi", append_eos=True)) == "Hi</s>"


def test_messages_go_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}])
    assert text(tokenizer, ids) == "[user] Hi\n[assistant] "


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(InputError, match="no chat template"):
        encode_prompt(make_tokenizer(eos_token="</s>"), [{"role": "user", "content": "Hi"}])


def test_an_empty_prompt_is_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]


def test_an_empty_prompt_is_eos_where_there_is_no_bos() -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]


def test_an_empty_prompt_needs_one_of_both() -> None:
    with pytest.raises(InputError, match="BOS or EOS"):
        encode_prompt(make_tokenizer(), "")


def test_an_eos_needs_one_in_the_tokenizer() -> None:
    with pytest.raises(InputError, match="no EOS token"):
        encode_response(make_tokenizer(), "Hi", append_eos=True)


def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_response(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (item,) = encode_probes(
        probes("Question", chosen="Answer"),
        tokenizer,
        max_prompt_tokens=3,
        max_response_tokens=2,
        append_eos=True,
    )
    assert (text(tokenizer, item.prompt), text(tokenizer, item.response)) == ("ion", "An")
    assert not item.eos


def test_eos_counts_as_a_token_and_is_marked(tokenizer: PreTrainedTokenizerFast) -> None:
    (item,) = encode_probes(
        probes("Question", chosen="An"), tokenizer, max_response_tokens=3, append_eos=True
    )
    assert text(tokenizer, item.response) == "An</s>"
    assert item.eos


def test_types_come_in_the_order_of_the_probe_set(tokenizer: PreTrainedTokenizerFast) -> None:
    items = encode_probes(probes("Q", rejected="b", chosen="a"), tokenizer)
    assert [(item.type, text(tokenizer, item.response)) for item in items] == [(0, "a"), (1, "b")]


def test_a_response_without_tokens_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"rejected: probe 'p1': the response has no tokens"):
        encode_probes(probes("Q", chosen="a", rejected=""), tokenizer, append_eos=True)


def test_length_is_that_of_prompt_and_response() -> None:
    assert len(TokenSequence(0, 0, (1, 2), (3,))) == 3
