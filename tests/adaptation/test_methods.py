"""Every method on every kind of model: what is trained, that it learns, that what is saved is what was trained."""

from __future__ import annotations

import re

import pytest
import torch
from adapting import IDS, PEFT_METHODS, adapted, fit, logits
from peft import PeftModel
from torch import nn

from gpt_finetune import GPTForCausalLM, GPTForSequenceClassification, preset
from gpt_finetune.adaptation.bases import fingerprint_of
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.memory import describe
from gpt_finetune.adaptation.methods import QUANTIZERS, adapt, load_base
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.errors import InputError

ARCHITECTURES = ["gpt2", "llama", "gpt-oss"]
# What the names of trained parameters must look like; all others must not.
TRAINED = {
    "full": r".*",
    **dict.fromkeys(("lora", "rslora", "pissa", "eva"), r".*\.lora_[AB]\.default\.weight"),
    "dora": r".*\.lora_([AB]|magnitude_vector)\.default\.weight",
    "ia3": r".*\.(k_proj|v_proj|down_proj)\.ia3_l\.default",
    "prompt_tuning": r"prompt_encoder\.default\.embedding\.weight",
    "prefix_tuning": r"prompt_encoder\.default\.embedding\.weight",
    "top_layers": r"model\.(layers\.1|norm)\..*",
    "norms": r".*norm\.(weight|bias)",
    "head": r"lm_head\.weight",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_learns_and_changes_only_what_it_trains(method, architecture, make_model):
    model = adapted(make_model(architecture), method, top_layers=1)
    everything = model.named_parameters(remove_duplicate=False)  # a tied head by both its names
    named = {id(parameter) for name, parameter in everything if re.fullmatch(TRAINED[method], name)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {id(model.get_parameter(name)) for name in trained} == named
    assert trained
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = fit(model)
    assert losses[-1] < losses[0] - 0.05
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trained
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", PEFT_METHODS)
def test_what_is_saved_loads_on_the_base(method, architecture, save, tmp_path):
    folder = save(architecture)
    model = adapted(GPTForCausalLM.from_pretrained(folder), method)
    fit(model)
    save_adapter(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(GPTForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    # PiSSA comes back as what it did to the base, which is the same sum in another order
    tolerance = 2e-5 if method == "pissa" else 0
    torch.testing.assert_close(logits(loaded), logits(model), atol=tolerance, rtol=0)


@pytest.mark.parametrize("options", [{}, {"init_lora_weights": "pissa_niter_4"}, {"use_rslora": True}])
def test_pissa_is_saved_as_plain_lora(options, save, tmp_path):
    folder = save("llama")
    base = GPTForCausalLM.from_pretrained(folder)
    wanted = logits(base)
    model = adapted(base, "pissa", options=options)
    torch.testing.assert_close(logits(model.eval()), wanted, atol=2e-5, rtol=0)  # it starts where the base is
    fit(model)
    save_adapter(model, tmp_path / "adapter")
    base = GPTForCausalLM.from_pretrained(folder)
    weight = base.model.layers[0].mlp.up_proj.weight.clone()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    settings = loaded.peft_config["default"]
    assert (settings.init_lora_weights, settings.r) == (True, 8)
    assert torch.equal(loaded.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight, weight)
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=0)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), wanted)


def test_pissa_starts_from_the_largest_singular_vectors(make_model):
    base = make_model("llama")
    weight = base.model.layers[0].mlp.up_proj.weight.detach().clone()
    layer = adapted(base, "pissa").base_model.model.model.layers[0].mlp.up_proj
    taken = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(taken, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight + taken, weight)


def test_eva_starts_from_the_directions_of_the_data(make_model):
    base = make_model("llama")
    inputs = []
    handle = base.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda m, x: inputs.append(x[0].detach()))
    logits(base)
    handle.remove()
    model = adapted(base, "eva", options={"eva_config": {"rho": 1.0}})
    found = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    centred = inputs[0].flatten(0, 1) - inputs[0].flatten(0, 1).mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:4]
    angles = nn.functional.cosine_similarity(found, directions).abs()
    assert angles[:3].min() > 0.99  # by a randomised decomposition, whose last direction is rough
    assert torch.equal(logits(model.eval()), logits(base))  # lora_B is zero: nothing has changed yet


def test_experts_are_adapted_and_dropout_is_refused(make_model):
    model = adapted(make_model("gpt-oss"), "lora")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(".experts." in name for name in names) == 2 * 2 * 2  # two layers, two stacks, A and B
    with pytest.raises(InputError, match=r"adapt.dropout = 0.1: PEFT adapts experts without dropout only"):
        adapted(make_model("gpt-oss"), "lora", dropout=0.1)
    attention = adapted(make_model("gpt-oss"), "lora", dropout=0.1, target_modules=["q_proj", "v_proj"])
    assert not any(".experts." in name for name, p in attention.named_parameters() if p.requires_grad)
    only = adapted(make_model("gpt-oss"), "lora", target_modules=["experts.down_proj"])
    assert all(".experts." in name for name, p in only.named_parameters() if p.requires_grad)


def test_targets_are_the_linear_layers_but_not_the_output(make_model):
    model = adapted(make_model("llama"))
    assert model.peft_config["default"].target_modules == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    chosen = adapted(make_model("llama"), target_modules=["layers.1.mlp.up_proj"])
    assert {name.split(".lora_")[0] for name, p in chosen.named_parameters() if p.requires_grad} == {
        "base_model.model.model.layers.1.mlp.up_proj"
    }


def test_a_classifier_trains_its_head(make_config, tmp_path):
    model = adapted(GPTForSequenceClassification(make_config("llama", num_labels=3)), "lora")
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    assert any("score" in name for name, p in model.named_parameters() if p.requires_grad)
    part = adapted(GPTForSequenceClassification(make_config("llama", num_labels=3)), "norms")
    assert part.score.weight.requires_grad
    assert not part.model.embed_tokens.weight.requires_grad


def test_lora_of_smollm2_trains_less_than_two_percent():
    config = preset(
        "tiny", vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, position_embedding_type="rotary", norm_type="rmsnorm", hidden_act="silu",
        gated_mlp=True, attention_bias=False, mlp_bias=False, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        model = adapt(GPTForCausalLM(config), AdaptConfig(rank=8))
    trained, total = model.get_nb_trainable_parameters()
    assert total - trained == 134_515_008  # as published
    assert trained == 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert trained / total < 0.02


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_porj"]}, r"adapt.target_modules = 'q_porj': no layer .* Did you mean 'q_proj'\?"),
        ({"target_modules": ["c_attn"]}, r"no layer bears this name. Known: down_proj, gate_proj"),
        ({"rank": 33}, r"adapt.rank = 33: the narrowest layer to adapt is 16 wide"),
        ({"method": "top_layers", "top_layers": 3}, r"adapt.top_layers = 3: the model has 2"),
        ({"method": "eva", "rank": 16}, r"eva wants 32 tokens in a batch, rho x rank, .* has 24"),
        ({"options": {"bias": "some"}}, r"adapt"),
    ],
)
def test_what_the_model_does_not_have(fields, message, make_model):
    with pytest.raises(InputError, match=message):
        adapted(make_model("llama"), **fields)


def test_eva_wants_data(make_model):
    with pytest.raises(InputError, match=r"adapt.method = 'eva': it looks at the data first"):
        adapt(make_model("llama"), AdaptConfig(method="eva", rank=2))


def test_norms_without_weights(make_model):
    with pytest.raises(InputError, match=r"adapt.method = 'norms': the model has no such parameters"):
        adapted(make_model("nanochat"), "norms")


def test_gradient_checkpointing_gives_the_same_gradients(make_model):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = adapted(make_model("llama"), "lora").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# ------------------------------------------------------------------------------------------------------ quantised bases


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "eva"])
@pytest.mark.quantized
def test_adapters_learn_on_a_base_of_8_bits(method, save, tmp_path):
    pytest.importorskip("torchao")
    folder = save("llama", hidden_size=128, initializer_range=0.05)
    base = load_base(str(folder), AdaptConfig(quantization="int8"))
    assert type(base.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    model = adapted(base, method)
    losses = fit(model)
    assert losses[-1] < losses[0] - 1
    save_adapter(model, tmp_path / "adapter")
    plain = load_base(str(folder), AdaptConfig())
    assert type(plain.model.layers[0].mlp.up_proj.weight) is nn.Parameter
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    error = (logits(loaded) - logits(model)).norm() / logits(model).norm()
    assert 0 < error < 0.05  # what 8 bits cost


@pytest.mark.quantized
def test_adapters_learn_on_a_base_of_4_bits(save, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():  # where it computes, too, only slowly
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        on_cpu = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **settings)
        monkeypatch.setitem(QUANTIZERS, "nf4", lambda: on_cpu)
    folder = save("llama", hidden_size=128, initializer_range=0.05)
    base = load_base(str(folder), AdaptConfig(quantization="nf4"))
    assert type(base.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    plain = load_base(str(folder), AdaptConfig())
    assert describe(base, 2, 12).parameters == plain.num_parameters()
    assert describe(base, 2, 12).parts["weights"] < describe(plain, 2, 12).parts["weights"]
    assert fingerprint_of(base) == fingerprint_of(plain)
    losses = fit(adapted(base, "lora"), IDS.to(base.device))
    assert losses[-1] < losses[0] - 1


@pytest.mark.quantized
def test_methods_that_change_the_base_refuse_a_quantised_one(save):
    pytest.importorskip("torchao")
    base = load_base(str(save("llama", hidden_size=128)), AdaptConfig(quantization="int8"))
    with pytest.raises(InputError, match=r"adapt.method = 'pissa': the base is quantised"):
        adapted(base, "pissa")


def test_a_missing_package_is_named(save, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(InputError, match=r"adapt.quantization = 'nf4': it takes the package bitsandbytes"):
        load_base("anything", AdaptConfig(quantization="nf4"))


def test_nf4_wants_a_gpu(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"adapt.quantization = 'nf4': it wants a CUDA device"):
        load_base("anything", AdaptConfig(quantization="nf4"))


def test_no_base_there(tmp_path):
    with pytest.raises(InputError, match=r"model.from_pretrained = "):
        load_base(str(tmp_path), AdaptConfig())
