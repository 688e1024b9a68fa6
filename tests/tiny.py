"""Tiny real parts for tests: a tokenizer, a model with random weights, probes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from forcegauge.probes import Probe, ProbeSet

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)


def tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per letter; pad is EOS, as in SmolLM2."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<bos>", "<eos>", *LETTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )
    if chat:
        fast.chat_template = TEMPLATE
    return fast


def llama(*, seed: int = 0, dropout: float = 0.0, layers: int = 2) -> PreTrainedModel:
    """A Llama with grouped-query attention and random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attention_dropout=dropout,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


WORDS = ("tea is hot", "cats nap", "the sun sets", "rain falls", "bread bakes", "we walk home")
"""Answers of the probes, one each."""


def probe_set(count: int = 4) -> ProbeSet:
    """Probes with most response types."""
    return ProbeSet(tuple(_probe(i) for i in range(count)))


def _probe(i: int) -> Probe:
    word = [WORDS[(i + shift) % len(WORDS)] for shift in range(len(WORDS))]
    responses = {
        "chosen": word[0],
        "rejected": word[1] + "!",
        "chosen_rephrase": "so " + word[0],
        "rejected_rephrase": "so " + word[1],
        "other_prompt": word[2],
        "unseen_prompt": word[3],
        "unrelated": word[4],
        "shuffled": " ".join(reversed(word[0].split())),
        "random_words": "nap the home",
    }
    return Probe(f"p{i}", f"what of {WORDS[i % len(WORDS)]}?", responses)
