"""What training takes: counts exactly, weights and optimiser in bytes, activations as autograd keeps them."""

from __future__ import annotations

import pytest
import torch
from adapting import adapted
from support import kept_bytes

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.memory import describe
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.costs import flops_per_token
from gpt_finetune.model import norms_gpt


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt-oss"])
@pytest.mark.parametrize("method", METHODS)
def test_counts(method, architecture, make_model):
    model = adapted(make_model(architecture), method)
    found = describe(model, 2, 12)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.trainable == trained
    assert found.parts["weights"] == 4 * found.parameters
    assert found.parts["gradients"] == 4 * trained
    assert found.parts["optimiser's states"] == 8 * trained
    assert found.total == sum(found.parts.values())
    assert f"{trained:,}, {trained / found.parameters:.2%} of them" in str(found)


KEEPING = ["full", "lora", "rslora", "dora", "pissa", "eva", "ia3", "prompt_tuning", "top_layers"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("method", KEEPING)
def test_activations_are_at_most_what_is_said_and_at_least_half(method, architecture, make_model, monkeypatch):
    monkeypatch.setattr(norms_gpt, "LARGE", 0)  # norms as in batches of real size
    # wide enough that what does not grow with the tokens is little
    fields = {"hidden_size": 64, "num_hidden_layers": 4, "max_position_embeddings": 256}
    if architecture == "gemma3":
        fields["layer_types"] = ["sliding_attention", "full_attention"] * 2
    model = adapted(make_model(architecture, **fields), method, top_layers=2).train()
    ids = torch.randint(2, 500, (4, 128))
    head = model.get_output_embeddings().weight
    ready = head.nbytes if head.requires_grad else 0  # the head's gradient is there already
    for recompute in (False, True):
        kept = kept_bytes(model, recompute, monkeypatch, input_ids=ids, labels=ids) - ready
        share = kept / describe(model, 4, 128, recompute=recompute).parts["activations"]
        assert 0.5 < share < 1.1, recompute


def test_frozen_layers_below_the_first_trained_one_keep_nothing(make_model):
    def activations(**fields):
        model = adapted(make_model("llama", num_hidden_layers=4), **fields)
        return describe(model, 2, 12).parts["activations"]

    head = activations(method="head")
    one, three = (activations(method="top_layers", top_layers=n) for n in (1, 3))
    assert three - head == 3 * (one - head)
    assert activations(method="full") > three
    top = activations(method="lora", target_modules=["layers.3.mlp.up_proj"])
    assert top < activations(method="lora", target_modules=["layers.0.mlp.up_proj"])


def test_precision_checkpointing_and_optimiser(make_model):
    model = adapted(make_model("llama"))
    plain = describe(model, 2, 12)
    assert "copies to compute with" not in plain.parts
    mixed = describe(model, 2, 12, dtype=torch.bfloat16)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert mixed.parts["copies to compute with"] == 2 * sum(m.weight.numel() for m in linear)
    assert mixed.parts["activations"] < plain.parts["activations"]
    assert describe(model, 2, 12, checkpointing=True).parts["activations"] < plain.parts["activations"]
    assert "optimiser's states" not in describe(model, 2, 12, 0).parts


@pytest.mark.quantized
def test_a_base_of_8_bits(save):
    pytest.importorskip("torchao")
    folder = str(save("llama", hidden_size=128))
    found = [describe(load_base(folder, AdaptConfig(quantization=kind)), 2, 12) for kind in ("none", "int8")]
    assert found[1].parameters == found[0].parameters
    model = load_base(folder, AdaptConfig())
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    saved = found[0].parts["weights"] - found[1].parts["weights"]
    # 3 bytes a number are saved, and each row has a scale now
    assert saved == pytest.approx(sum(3 * m.weight.numel() - 4 * m.out_features for m in linear), rel=0.01)


def test_flops_of_frozen_weights(make_model):
    whole = make_model("llama")
    three = flops_per_token(whole, 12)
    linear = sum(m.weight.numel() for m in whole.modules() if isinstance(m, torch.nn.Linear))
    whole.requires_grad_(False)
    assert flops_per_token(whole, 12) == three - 2 * linear
    for layer in whole.model.layers:
        layer.requires_grad_(True)
    assert flops_per_token(whole, 12) == three - 2 * whole.lm_head.weight.numel()
