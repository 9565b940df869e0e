"""What an architecture costs, against hand-computed figures, real tensors and torch's own count."""

from __future__ import annotations

import pytest
import torch
from support import kept_bytes
from torch.utils.flop_counter import FlopCounterMode

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.costs import estimate, estimate_activations, flops_per_token, forward_flops, parameters_by_part
from gpt_finetune.errors import InputError
from gpt_finetune.model import norms_gpt


@pytest.fixture
def with_cross_attention(make_model):
    return make_model(add_cross_attention=True, cross_attention_hidden_size=24)


def count_flops(model, **inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


def test_gpt2_by_hand():
    costs = estimate(preset("gpt2"), context_length=1024, batch_size=4, dtype="bfloat16", train_dtype="float32")
    width, layers, total = 768, 12, 124_439_808
    assert costs.parameters == {
        "token embeddings": 50257 * width,
        "position embeddings": 1024 * width,
        "attention": layers * (4 * width**2 + 4 * width),
        "MLP": layers * (8 * width**2 + 5 * width),
        "norms": 25 * 2 * width,  # two a layer, and the last
    }
    assert sum(costs.parameters.values()) == total
    assert costs.active == total - 1024 * width  # a row of positions is looked up; tied embeddings are the head
    matrices = layers * 12 * width**2 + width * 50257
    assert costs.attention_flops == 4 * layers * width * 1024
    assert costs.forward_flops == 2 * matrices + costs.attention_flops
    assert costs.training_flops == 6 * matrices + 12 * layers * width * 1024
    assert costs.cache_per_token == 2 * layers * width * 2
    assert costs.cache == 1024 * costs.cache_per_token
    assert costs.serving == {"weights": 2 * total, "cache": 4 * costs.cache}
    keeping = estimate(preset("gpt2"), 1024, batch_size=4, recompute=False).training
    assert keeping["copies to compute with"] == 2 * matrices
    assert keeping["activations"] > costs.training["activations"] > costs.checkpointed["activations"]
    assert costs.checkpointed["copies to compute with"] == 2 * matrices  # autocast keeps them to the end
    del costs.training["activations"], costs.training["logits"]
    assert costs.training == {
        "weights": 4 * total,
        "copies to compute with": 2 * width * 50257,  # the largest matrix; all are copied, one after the other
        "gradients": 4 * total,
        "AdamW's moments": 8 * total,
    }


# arXiv:2508.10925 table 1, in billions; its MLP holds the router.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt-oss-20b", {"MLP": 19.12, "attention": 0.64, "embeddings": 1.16, "active": 3.61, "total": 20.91}),
        ("gpt-oss-120b", {"MLP": 114.71, "attention": 0.96, "embeddings": 1.16, "active": 5.13, "total": 116.83}),
    ],
)
def test_parts_of_gpt_oss_are_the_published_ones(name, published):
    costs = estimate(preset(name), context_length=1)
    parts = costs.parameters
    ours = {
        "MLP": parts["experts"] + parts["router"],
        "attention": parts["attention"],
        "embeddings": parts["token embeddings"] + parts["output head"],
        "active": costs.active,
        "total": sum(parts.values()),
    }
    assert {part: round(count / 1e9, 2) for part, count in ours.items()} == published


def test_parts_make_up_the_model(make_model, architecture):
    model = make_model(architecture)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == model.num_parameters()
    norms = [p.numel() for name, p in model.named_parameters() if "norm" in name]
    assert parts.get("norms", 0) == sum(norms)
    assert parts.get("output head", 0) == (0 if model.config.tie_word_embeddings else model.lm_head.weight.numel()) + (
        model.lm_head.bias.numel() if model.config.lm_head_bias else 0
    )


def test_flops_of_a_sequence_are_those_that_torch_counts(make_model, architecture):
    """The plain kernel computes the whole square of scores, and so does the formula, unless layers slide."""
    model = make_model(architecture, layer_types=None, sliding_window=None).eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    ids = torch.randint(0, 512, (2, 16))
    assert count_flops(model, input_ids=ids) == 2 * 16 * forward_flops(model, 16)


@pytest.mark.parametrize("architecture", ["gpt2", "sliding", "multi-query", "gpt-oss"])
@pytest.mark.parametrize("length", [2, 4, 9])
def test_flops_of_the_last_token_are_those_that_torch_counts(make_model, architecture, length):
    model = make_model(architecture)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    ids = torch.randint(0, 512, (1, length))
    cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    assert count_flops(model, input_ids=ids[:, -1:], past_key_values=cache) == forward_flops(model, length)


def test_flops_with_cross_attention(with_cross_attention):
    model = with_cross_attention
    model.set_attn_implementation("eager")
    ids, states = torch.randint(0, 512, (1, 8)), torch.randn(1, 8, 24)
    assert count_flops(model, input_ids=ids, encoder_hidden_states=states) == 8 * forward_flops(model, 8)


def test_training_takes_three_forward_passes(make_model):
    model = make_model().train()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 512, (2, 16))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, shift_labels=ids).loss.backward()  # the head is spared tokens without a label
    assert counter.get_total_flops() == 2 * 16 * flops_per_token(model, 16)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_cache_is_as_large_as_the_real_one(make_model, architecture, length):
    model = make_model(architecture)
    ids = torch.randint(0, 512, (3, length))
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = sum(t.numel() * t.itemsize for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 3 * estimate(model.config, length, dtype="float32").cache


def test_cache_with_cross_attention(with_cross_attention):
    model = with_cross_attention
    ids, states = torch.randint(0, 512, (1, 8)), torch.randn(1, 8, 24)
    cache = model(input_ids=ids, encoder_hidden_states=states, use_cache=True).past_key_values
    layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    held = sum(t.numel() * t.itemsize for layer in layers for t in (layer.keys, layer.values))
    assert held == estimate(model.config, 8, dtype="float32").cache


# How far the estimate may be from what a CPU keeps: RMSNorm's inner values come on top (its kernel is not fused there),
# a window's mask, and what gpt-oss's sinks and clamps copy.
ESTIMATES = {"gpt2": 0.01, "gpt1": 0.01, "gpt-neox": 0.01, "multi-query": 0.01, "nanochat": 0.01}
ESTIMATES |= {"gpt-j": 0.1, "sliding": 0.1, "llama": 0.1, "modern": 0.25, "gpt-oss": 0.25, "gemma3": 0.25}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(("architecture", "tolerance"), ESTIMATES.items())
def test_activations_of_a_layer_are_what_autograd_keeps(architecture, tolerance, recompute, make_model, monkeypatch):
    monkeypatch.setattr(norms_gpt, "LARGE", 0)  # norms as in batches of real size
    sizes = {"hidden_size": 128, "max_position_embeddings": 256}
    kept, estimated = [], []
    for layers in (2, 4):
        types = {"layer_types": ["full_attention", "sliding_attention"] * (layers // 2), "sliding_window": 64}
        slides = architecture in ("sliding", "gpt-oss", "gemma3")
        model = make_model(architecture, num_hidden_layers=layers, **sizes, **(types if slides else {})).train()
        ids = torch.randint(0, 512, (2, 128))
        kept.append(kept_bytes(model, recompute, monkeypatch, input_ids=ids) / 256)
        estimated.append(estimate_activations(model.config, 4, 4, recompute=recompute))
    assert estimated[1] - estimated[0] == pytest.approx(kept[1] - kept[0], rel=tolerance)


def test_checkpointed_layers_keep_their_inputs_only():
    config = preset("gpt2")
    more = preset("gpt2", num_hidden_layers=13)
    a, b = (estimate_activations(c, 2, 4, checkpointing=True) for c in (config, more))
    assert b - a == 4 * 768


def test_precision():
    config = preset("tiny")
    pure = estimate(config, dtype="bfloat16", train_dtype="bfloat16").training
    mixed = estimate(config, dtype="bfloat16", train_dtype="float32").training
    assert "copies to compute with" not in pure
    assert pure["AdamW's moments"] == mixed["AdamW's moments"] / 2
    assert pure["activations"] < mixed["activations"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_length": 0}, "context_length = 0"),
        ({"batch_size": -1}, "batch_size = -1"),
        ({"context_length": 65}, "context_length = 65: learned positions end at 64"),
    ],
)
def test_impossible_lengths(arguments, message):
    with pytest.raises(InputError, match=message):
        estimate(preset("tiny"), **arguments)


def test_experts_that_rest_are_not_active():
    everything = preset("modern-moe-6m", num_experts_per_tok=8)
    assert estimate(everything).active == sum(estimate(everything).parameters.values())
    dense = estimate(preset("modern-moe-6m")).parameters
    assert estimate(preset("modern-moe-6m")).active == sum(dense.values()) - dense["experts"] * 6 // 8


def test_model_classes_agree(make_config):
    assert sum(estimate(make_config()).parameters.values()) == GPTForCausalLM(make_config()).num_parameters()
    assert sum(estimate(make_config(is_causal=False)).parameters.values()) > 0
