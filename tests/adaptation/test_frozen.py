"""Frozen weights in bfloat16: what is narrowed, that nothing else changes, and that the base comes back whole."""

from __future__ import annotations

import sys

import pytest
import torch
from adapting import IDS, adapted, fit, logits
from peft import PeftModel
from support import is_mapped
from torch import nn

from gpt_finetune import GPTForCausalLM, GPTForSequenceClassification
from gpt_finetune.adaptation.bases import fingerprint_of
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.frozen import NARROWED, frozen_dtype, restore
from gpt_finetune.adaptation.memory import describe
from gpt_finetune.adaptation.merging import load_adapters, merge
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.errors import InputError
from gpt_finetune.model.loss_gpt import is_plain

ROUNDING = [name for name, method in METHODS.items() if method.rounds]


def dtypes(model, kinds):
    return {m.weight.dtype for m in model.modules() if isinstance(m, kinds) and not m.weight.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_auto_follows_the_training_where_the_method_allows(method, make_model):
    model = adapted(make_model("llama"), method, top_layers=1, bf16=True)
    narrow = torch.bfloat16 if method in ROUNDING else torch.float32
    if method != "full":
        assert dtypes(model, nn.Linear | nn.Embedding) <= {narrow}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "norm" in n)
    for bf16, fields in ((False, {}), (None, {}), (True, {"frozen_dtype": "float32"})):
        plain = adapted(make_model("llama"), method, top_layers=1, bf16=bf16, **fields)
        assert {p.dtype for p in plain.parameters()} == {torch.float32}
        base = plain.get_base_model() if method in ROUNDING else plain
        assert "forward" not in vars(base)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt-oss"])
@pytest.mark.parametrize("method", ROUNDING)
def test_weights_that_bfloat16_holds_train_the_same_to_the_last_bit(method, architecture, make_model):
    runs = []
    for kind in ("float32", "bfloat16"):
        torch.manual_seed(0)
        base = make_model(architecture)
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16().float()
        model = adapted(base, method, frozen_dtype=kind)
        runs.append((fit(model, bf16=True), {n: p for n, p in model.named_parameters() if p.requires_grad}))
    assert runs[0][0] == runs[1][0]
    assert runs[0][0][-1] < runs[0][0][0]
    for name, parameter in runs[0][1].items():
        assert torch.equal(parameter, runs[1][1][name]), name


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning"])
def test_other_weights_train_as_what_rounding_leaves_of_them(method, make_model):
    models = []
    for kind in ("bfloat16", "float32"):
        torch.manual_seed(0)
        models.append(adapted(make_model("llama"), method, frozen_dtype=kind))
    narrow, whole = models
    left = {name: value.float() for name, value in narrow.state_dict().items()}
    assert any(not torch.equal(value, left[name]) for name, value in whole.state_dict().items())
    whole.load_state_dict(left)
    assert fit(narrow, steps=12, bf16=True) == fit(whole, steps=12, bf16=True)


def test_a_tied_head_stays_tied_plain_and_without_gradient(make_model):
    model = adapted(make_model("gpt2"), bf16=True)
    base = model.get_base_model()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert base.lm_head.weight.dtype == torch.bfloat16
    assert base.model.embed_positions.weight.dtype == torch.float32
    assert base.model.embed_tokens(IDS).dtype == torch.float32
    assert is_plain(base.lm_head)
    fit(model, steps=1, bf16=True)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_tables_with_trained_rows_and_new_heads_keep_their_precision(make_model, make_config):
    grown = make_model("llama")
    grown.resize_token_embeddings(514)
    model = adapted(grown, new_rows=[512, 513], bf16=True)
    base = model.get_base_model()
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "embed_tokens" in n)
    assert base.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    losses = fit(model, IDS + 488, bf16=True)
    assert losses[-1] < losses[0]
    head = adapted(GPTForSequenceClassification(make_config("llama", num_labels=3)), bf16=True)
    assert all(p.dtype == torch.float32 for n, p in head.named_parameters() if "score" in n)


@pytest.mark.parametrize("method", ROUNDING)
def test_it_answers_and_evaluates_without_autocast_around_it(method, make_model):
    model = adapted(make_model("llama"), method, bf16=True)
    fit(model, bf16=True)
    generated = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    assert generated.shape == (2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = logits(model)
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt-oss"])
def test_what_is_saved_is_the_adapter_and_loads_on_the_base(architecture, save, tmp_path):
    folder = save(architecture)
    model = adapted(load_base(str(folder), AdaptConfig()), bf16=True)
    fit(model, bf16=True)
    save_adapter(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(GPTForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    wanted = logits(loaded)
    assert (logits(model).float() - wanted).norm() < 0.02 * wanted.norm()


def test_merging_reads_the_base_anew(save, tmp_path):
    folder = save("llama")
    model = adapted(load_base(str(folder), AdaptConfig()), bf16=True)
    fit(model, bf16=True)
    save_adapter(model, tmp_path / "adapter")
    whole = merge(load_adapters(load_base(str(folder), AdaptConfig()), {"one": tmp_path / "adapter"}))
    found = merge(model)
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
    assert torch.equal(logits(found.eval()), logits(whole.eval()))
    assert "forward" not in vars(found)


def test_a_restored_model_is_what_it_was(save):
    folder = save("gpt2")
    base = load_base(str(folder), AdaptConfig())
    before, wanted = fingerprint_of(base), logits(base.eval())
    model = adapted(base, bf16=True).eval()
    assert fingerprint_of(model) != before
    restore(model)
    assert fingerprint_of(model) == before
    assert torch.equal(logits(model), wanted)
    assert not hasattr(base, NARROWED)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    restore(model)  # nothing is left to do


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what is mapped")
@pytest.mark.parametrize("bf16", [False, True])
def test_the_bases_file_is_let_go_where_it_was_rounded(bf16, save):
    folder = save("llama")
    model = adapted(load_base(str(folder), AdaptConfig()), bf16=bf16)
    assert is_mapped(folder) is not bf16
    assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {torch.float32}


def test_what_came_from_no_file_stays_rounded(make_model, caplog):
    model = adapted(make_model("llama"), bf16=True)
    weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    rounded = weight.float()
    restore(model)
    assert torch.equal(weight, rounded)
    assert "they stay rounded" in caplog.text


def test_memory_is_counted_as_it_is(make_model):
    wide = describe(adapted(make_model("llama")), 2, 12, dtype=torch.bfloat16)
    model = adapted(make_model("llama"), bf16=True)
    found = describe(model, 2, 12, dtype=torch.bfloat16)
    assert found.parts["weights"] == sum(p.nbytes for p in model.parameters()) < 0.7 * wide.parts["weights"]
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parts["copies to compute with"] == 2 * adapters < wide.parts["copies to compute with"]


@pytest.mark.parametrize(
    ("fields", "bf16", "message"),
    [
        ({"frozen_dtype": "float16"}, True, r"adapt.frozen_dtype = 'float16': weights are not kept in it"),
        ({"frozen_dtype": "bfloat16", "method": "full"}, True, r"full trains or moves weights of the base"),
        ({"frozen_dtype": "bfloat16", "method": "pissa"}, True, r"pissa trains or moves"),
        ({"frozen_dtype": "bfloat16"}, False, r"computes in another precision.* Set train.precision=bfloat16"),
        ({"frozen_dtype": "bfloat16", "quantization": "int8"}, True, r"the base is quantised"),
        ({"frozen_dtype": "bfloat16", "options": {"use_dora": True}}, True, r"adapt.options make LoRA start"),
    ],
)
def test_refusals(fields, bf16, message, make_model):
    with pytest.raises(InputError, match=message):
        adapted(make_model("llama"), bf16=bf16, **fields)


def test_auto_leaves_starts_that_move_the_base_and_spread_weights_alone(monkeypatch):
    assert frozen_dtype(AdaptConfig(), True) == torch.bfloat16
    for options in ({"use_dora": True}, {"init_lora_weights": "olora"}):
        assert frozen_dtype(AdaptConfig(options=options), True) == torch.float32
    assert frozen_dtype(AdaptConfig(options={"init_lora_weights": "gaussian"}), True) == torch.bfloat16
    assert frozen_dtype(AdaptConfig(quantization="int8"), True) == torch.float32
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert frozen_dtype(AdaptConfig(), True) == torch.float32
