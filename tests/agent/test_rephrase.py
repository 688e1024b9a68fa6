"""Rephrases written by a model: what is asked, what is kept, what is left out."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forcegauge.errors import InputError
from forcegauge.probes import Probe, ProbeSet
from forcegauge.rephrase import BATCH, load_writer, missing_rephrases, with_rephrases


class Scripted(nn.Module):
    """A language model that answers the rows of each batch with given texts, then ends."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, replies: list[str]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.replies, self.tokenizer = replies, tokenizer
        self.asked: list[str] = []
        self.batch: list[list[int]] = []

    def forward(
        self, input_ids: Any, attention_mask: Any, past_key_values: Any, use_cache: bool
    ) -> Any:
        step = past_key_values or 0
        if step == 0:
            rows = zip(input_ids, attention_mask, strict=True)
            self.asked += [str(self.tokenizer.decode(ids[mask.bool()])) for ids, mask in rows]
            texts = [self.replies.pop(0) for _ in input_ids]
            self.batch = [self.tokenizer(text)["input_ids"] for text in texts]
        logits = torch.zeros(len(input_ids), 1, len(self.tokenizer))
        for row, reply in enumerate(self.batch):
            token = reply[step] if step < len(reply) else self.tokenizer.eos_token_id
            logits[row, 0, token] = 1.0
        return SimpleNamespace(logits=logits, past_key_values=step + 1)


def probe(index: int, **responses: str) -> Probe:
    return Probe(f"p{index}", f"Question {index}?", {"chosen": f"Yes {index}.", **responses})


def test_chosen_and_rejected_are_rephrased_in_reading_order(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = Scripted(tokenizer, [" Indeed.\n", "Never."])
    (done,) = with_rephrases(
        ProbeSet((probe(0, rejected="No.", shuffled="x"),)), model, tokenizer
    ).probes
    assert list(done.responses.items()) == [
        ("chosen", "Yes 0."),
        ("rejected", "No."),
        ("chosen_rephrase", "Indeed."),
        ("rejected_rephrase", "Never."),
        ("shuffled", "x"),
    ]


def test_the_model_is_asked_with_question_and_answer_through_its_chat_template(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = Scripted(tokenizer, ["Indeed."])
    with_rephrases(ProbeSet((probe(0),)), model, tokenizer)
    (asked,) = model.asked
    assert asked.startswith("[user] Rewrite the answer below")
    assert asked.endswith("Question: Question 0?\n\nAnswer: Yes 0.\n[assistant] ")


def test_rephrases_that_are_there_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    probe_set = ProbeSet((probe(0, chosen_rephrase="Mine."),))
    assert with_rephrases(probe_set, Scripted(tokenizer, []), tokenizer) == probe_set


@pytest.mark.parametrize("reply", ["", "Yes 0.", "No.", "la" * 40])
def test_an_empty_unchanged_or_endless_rephrase_is_left_out(
    tokenizer: PreTrainedTokenizerFast, reply: str
) -> None:
    probe_set = ProbeSet((probe(0, rejected="No.", rejected_rephrase="Nope."),))
    done = with_rephrases(probe_set, Scripted(tokenizer, [reply]), tokenizer)
    assert "chosen_rephrase" not in done.probes[0].responses
    assert len(missing_rephrases(done)) == 1


def test_batches_put_each_text_with_its_probe_and_report_progress(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    count, steps = BATCH + 3, list[int]()
    model = Scripted(tokenizer, [f"Reply {i}." for i in range(count)])
    probe_set = ProbeSet(tuple(probe(i) for i in range(count)))
    done = with_rephrases(probe_set, model, tokenizer, advance=steps.append)
    assert [p.responses["chosen_rephrase"] for p in done.probes] == [
        f"Reply {i}." for i in range(count)
    ]
    assert steps == [BATCH, 3]


def test_a_model_without_chat_template_is_refused(
    tokenizer: PreTrainedTokenizerFast,
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Any,
) -> None:
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    tiny_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        load_writer(str(tmp_path))


@pytest.mark.slow
def test_a_real_instruct_model_says_it_in_other_words() -> None:
    from forcegauge.demo.model import demo_model

    answer = "Keep the bread in a paper bag and it will stay fresh for two days."
    asked = Probe("p", "How do I keep bread fresh?", {"chosen": answer})
    model, tokenizer = load_writer(str(demo_model()))
    (done,) = with_rephrases(ProbeSet((asked,)), model, tokenizer).probes
    assert done.responses["chosen_rephrase"] != answer
    assert "bread" in done.responses["chosen_rephrase"]
