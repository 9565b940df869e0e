"""Choosing a template, what the tokenizer gains, and the rows that the model gets for it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.trainer_utils import align_special_tokens

from gpt_finetune.errors import InputError
from gpt_finetune.supervised.templates import CHOICES, end_of_turn, grow, ready_tokenizer

CHAT = [{"role": "user", "content": "你好?"}, {"role": "assistant", "content": "Hi."}]
CHATML = ["<|im_start|>", "<|im_end|>"]


def test_without_a_template_of_its_own_plain_is_chosen_and_nothing_added(tokenizer):
    ready, added = ready_tokenizer(tokenizer, "auto")
    assert added == []
    assert ready.apply_chat_template(CHAT, tokenize=False) == "User:\n你好?\n\nAssistant:\nHi.<|endoftext|>\n\n"
    asked = ready.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "User:\n你好?\n\nAssistant:\n"
    assert end_of_turn(ready) == [ready.eos_token_id]
    assert tokenizer.chat_template is None


def test_chatml_adds_its_tokens_once_and_survives_saving(tokenizer, tmp_path):
    ready, added = ready_tokenizer(tokenizer, "chatml")
    assert added == CHATML
    assert len(ready) == len(tokenizer) + 2
    assert len(tokenizer("<|im_end|>")["input_ids"]) > 1  # the caller's own is untouched
    ready.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    written = "<|im_start|>user\n你好?<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert again.apply_chat_template(CHAT, tokenize=False) == written
    assert end_of_turn(again) == end_of_turn(ready) == [len(tokenizer) + 1, tokenizer.eos_token_id]
    for choice in ("auto", "tokenizer", "chatml"):
        third, more = ready_tokenizer(again, choice)
        assert (more, third.chat_template) == ([], again.chat_template)


def test_auto_takes_chatml_where_the_vocabulary_has_it(tokenizer):
    known = copy.deepcopy(tokenizer)
    known.add_special_tokens({"extra_special_tokens": CHATML})
    ready, added = ready_tokenizer(known, "auto")
    assert added == []
    assert "<|im_start|>" in ready.chat_template


def test_a_file_and_its_tokens(tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ready, added = ready_tokenizer(tokenizer, str(file))
    assert added == ["<|user|>", "<|end|>", "<|assistant|>"]
    assert end_of_turn(ready) == [ready.convert_tokens_to_ids("<|end|>"), ready.eos_token_id]


BAD = {
    "": None,
    "{% for m in messages %}": "line 1 is no Jinja",
    "{{ messages[7].content.x.y }}": "cannot write a question and an answer",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}": "leaves out what assistant said",
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}": "no generation prompt",
}


@pytest.mark.parametrize("text", [text for text in BAD if text])
def test_bad_templates_are_refused(tokenizer, tmp_path, text):
    (tmp_path / "bad.jinja").write_text(text)
    with pytest.raises(InputError, match=BAD[text]) as error:
        ready_tokenizer(tokenizer, str(tmp_path / "bad.jinja"))
    assert str(error.value).startswith("data.chat_template = ")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("chatlm", "Did you mean 'chatml'"), ("nowhere/x.jinja", "path of a Jinja file"), ("tokenizer", "has none")],
)
def test_no_such_template(tokenizer, choice, expected):
    with pytest.raises(InputError, match=rf"data\.chat_template = .*{expected}"):
        ready_tokenizer(tokenizer, choice)
    assert "auto" in CHOICES


def test_a_template_whose_turns_end_the_prompt_needs_none(tokenizer, tmp_path):
    """As Llama 2's: [/INST] closes the user's turn, and the answer follows."""
    text = "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %} {{ m.content }}"
    (tmp_path / "inst.jinja").write_text(text + "{{ eos_token }}{% endif %}{% endfor %}")
    assert ready_tokenizer(tokenizer, str(tmp_path / "inst.jinja"))[1] == []


@pytest.mark.parametrize("before", [None, "<|endoftext|>", "<|im_end|>"])
def test_a_pad_token_of_its_own_and_not_silently(tokenizer, caplog, before):
    bare = copy.deepcopy(tokenizer)
    if before == "<|im_end|>":
        bare.add_special_tokens({"extra_special_tokens": CHATML})
    bare.pad_token = before
    with caplog.at_level(logging.INFO, logger="gpt_finetune"):
        ready, _ = ready_tokenizer(bare, "chatml")
    assert ready.pad_token == "<|pad|>"
    assert ready.pad_token_id not in end_of_turn(ready)
    assert "pad token is now <|pad|>" in caplog.text


def test_a_pad_token_is_added_where_there_is_none(tokenizer, caplog, monkeypatch):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.unk_token = bare.eos_token  # as GPT-2's
    monkeypatch.setattr("gpt_finetune.supervised.templates.PADS", ("<|empty|>",))
    with caplog.at_level(logging.INFO, logger="gpt_finetune"):
        ready, added = ready_tokenizer(bare, "plain")
    assert added == ["<|empty|>"]
    assert ready.pad_token_id == len(tokenizer)
    assert "gains the tokens <|empty|>" in caplog.text


def test_what_stands_for_unknown_text_in_a_vocabulary_that_knows_all_can_pad(tokenizer, monkeypatch):
    """As SmolLM2's: nothing has to grow, so an adapter fits the base as it is."""
    bare = copy.deepcopy(tokenizer)
    bare.add_special_tokens({"unk_token": "<|unknown|>"})
    bare.pad_token = bare.eos_token
    monkeypatch.setattr("gpt_finetune.supervised.templates.PADS", ("<|empty|>",))
    ready, added = ready_tokenizer(bare, "plain")
    assert (ready.pad_token, added) == ("<|unknown|>", [])


def test_a_good_pad_token_is_kept(tokenizer):
    assert ready_tokenizer(tokenizer, "chatml")[0].pad_token_id == tokenizer.pad_token_id


def test_tokenizers_that_cannot_be_used(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        ready_tokenizer(bare, "plain")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gptj"])
def test_new_rows_are_means_of_old_ones(make_model, tokenizer, architecture):
    overrides = {"tie_word_embeddings": architecture == "gpt2", "lm_head_bias": architecture == "gptj"}
    name = "gpt2" if architecture == "gptj" else architecture
    model = make_model(name, vocab_size=len(tokenizer), **overrides)
    if overrides["lm_head_bias"]:
        torch.nn.init.normal_(model.lm_head.bias)
    x = torch.randint(0, len(tokenizer), (1, 9))
    before, table = model(x).logits, model.get_input_embeddings().weight.clone()
    ready, added = ready_tokenizer(tokenizer, "chatml")
    ids = grow(model, ready, added)
    assert ids == [len(tokenizer), len(tokenizer) + 1]
    assert model.config.vocab_size == len(ready) == model.get_output_embeddings().out_features
    torch.testing.assert_close(model(x).logits[..., : len(tokenizer)], before)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied is overrides["tie_word_embeddings"]
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        old = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(layer.weight[ids[1]], layer.weight[old].mean(0))
        assert layer.weight.requires_grad
        if getattr(layer, "bias", None) is not None:
            torch.testing.assert_close(layer.bias[ids[1]], layer.bias[old].mean(0))
    assert torch.equal(model.get_input_embeddings().weight[: len(table)], table)
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == [ids[1], tokenizer.eos_token_id]
        assert config.pad_token_id == tokenizer.pad_token_id
    align_special_tokens(model, ready)  # as Trainer does when it starts
    assert set(model.generation_config.eos_token_id) == {ids[1], tokenizer.eos_token_id}


def test_rows_that_a_model_has_to_spare_are_used(make_model, tokenizer, tmp_path):
    model = make_model("gpt2", vocab_size=len(tokenizer) + 64)
    ready, added = ready_tokenizer(tokenizer, "chatml")
    assert grow(model, ready, added) == [len(tokenizer), len(tokenizer) + 1]
    assert model.config.vocab_size == len(tokenizer) + 64
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == end_of_turn(ready)
    ready, added = ready_tokenizer(tokenizer, "plain")
    assert grow(model, ready, added) == []
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_model_stops_at_the_end_of_a_turn(make_model, tokenizer):
    ready, added = ready_tokenizer(tokenizer, "chatml")
    model = make_model("gpt2", vocab_size=len(tokenizer), tie_word_embeddings=False, lm_head_bias=True)
    ids = grow(model, ready, added)
    with torch.no_grad():
        model.lm_head.bias[ids[1]] = 1e4
    output = model.generate(**ready("what", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert output[0, -1] == ids[1]
    assert output.shape[1] == len(ready("what")["input_ids"]) + 1
