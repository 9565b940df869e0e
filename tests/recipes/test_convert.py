"""The recipe that converts: there, and back to the same bits."""

from __future__ import annotations

import typing

import pytest
import torch
from support import load_recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError

recipe = load_recipe("convert")


@pytest.fixture
def theirs(make_tokenizer, tmp_path):
    folder = tmp_path / "theirs"
    tokenizer = make_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, summary_type="last")
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def convert(*words):
    return recipe.main(parse(recipe.ConvertConfig, list(words)))


def test_there_and_back(theirs, tmp_path, capsys):
    ours = convert(f"model={theirs}", f"output_dir={tmp_path / 'ours'}")
    assert AutoConfig.from_pretrained(ours).model_type == "gpt_finetune"
    assert "parameters in" in capsys.readouterr().out
    back = convert(f"model={ours}", f"output_dir={tmp_path / 'back'}", "to=native", "max_shard_size=20KB")
    a, b = (AutoModelForCausalLM.from_pretrained(folder) for folder in (theirs, back))
    assert a.config.to_diff_dict() == b.config.to_diff_dict()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
    texts = {tuple(AutoTokenizer.from_pretrained(folder)("def add")["input_ids"]) for folder in (theirs, ours, back)}
    assert len(texts) == 1


def test_precision_and_overrides(theirs, tmp_path):
    words = [f"model={theirs}", f"output_dir={tmp_path / 'out'}", "dtype=bfloat16", "overrides.residual_dropout=0.5"]
    model = AutoModelForCausalLM.from_pretrained(convert(*words))
    assert model.dtype == torch.bfloat16
    assert model.config.residual_dropout == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["to=llama"], r"dialect = 'llama': this architecture cannot express .*position_embedding_type='learned'"),
        (["to=bert"], "to = 'bert': expected"),
        (["overrides.residual_drop=0.5"], "overrides.residual_drop = 0.5: .*Did you mean 'residual_dropout'"),
        (["overrides.residual_dropout=2.0"], "residual_dropout=2.0: it must be in"),
        (["overrides.residual_dropout=much"], "residual_dropout"),
        (["model=nowhere"], "model = 'nowhere'"),
    ],
)
def test_what_cannot_be_done(theirs, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        convert(f"model={theirs}", f"output_dir={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"output_dir = .*not empty"):
        convert("model=nowhere", f"output_dir={tmp_path}")


def test_every_dialect_can_be_asked_for():
    from gpt_finetune.conversion import DIALECTS

    choices = typing.get_args(typing.get_type_hints(recipe.ConvertConfig)["to"])
    assert choices == ("gpt_finetune", "native", *DIALECTS)
