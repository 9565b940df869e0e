"""Parity of what one architecture has alone: gpt-oss's experts, GPT-2's cross-attention; and that parity tests bite."""

import pytest
import torch
from references import (
    REFERENCES,
    ROTATION,
    assert_same_gradients,
    close,
    losses_and_gradients,
    make_batch,
    make_pair,
    real_tokens,
)
from transformers import DynamicCache, EncoderDecoderCache

from gpt_finetune import GPTConfig, GPTForCausalLM

PADDINGS = [None, "left", "right"]

# ------------------------------------------------------------------------------------------------------- experts


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Return gpt-oss with a load-balancing loss large enough to matter."""
    pair = make_pair("gpt_oss", tmp_path_factory.mktemp("reference"), router_aux_loss_coef=0.5)
    pair.reference.set_experts_implementation("eager")
    return pair


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_experts_and_their_load_balancing(experts, implementation, padding, tmp_path):
    experts.ours.set_experts_implementation(implementation)
    assert experts.ours.config._experts_implementation == implementation
    batch = make_batch(padding)
    real = real_tokens(batch)
    a, b = losses_and_gradients(experts, batch, output_router_logits=True)
    close(a.logits[real], b.logits[real])
    close(a.loss, b.loss)
    close(a.aux_loss, b.aux_loss)
    assert a.aux_loss > 2  # the least there can be, with two experts a token
    for x, y in zip(a.router_logits, b.router_logits, strict=True):
        close(x[real.flatten()], y[real.flatten()])
    assert_same_gradients(experts, tmp_path)


# ----------------------------------------------------------------------------------------------- cross-attention


@pytest.fixture(scope="module")
def crossing(tmp_path_factory):
    """Return GPT-2 with cross-attention."""
    return make_pair("gpt2", tmp_path_factory.mktemp("reference"), add_cross_attention=True)


def encoder_states(padding: str | None) -> dict[str, torch.Tensor]:
    """Return what an encoder made of a batch."""
    batch = make_batch(padding, length=9)
    states = {"encoder_hidden_states": torch.randn(3, 9, 32)}
    return states if padding is None else {**states, "encoder_attention_mask": batch["attention_mask"]}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("source", PADDINGS)
@pytest.mark.parametrize("padding", [None, "left"])
def test_cross_attention(crossing, attention, source, padding, tmp_path):
    crossing.ours.set_attn_implementation(attention)
    batch = make_batch(padding)
    real = real_tokens(batch)
    a, b = losses_and_gradients(crossing, batch, output_hidden_states=True, **encoder_states(source))
    close(a.logits[real], b.logits[real])
    close(a.loss, b.loss)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        close(x[real], y[real])
    assert_same_gradients(crossing, tmp_path)


@pytest.mark.parametrize("source", PADDINGS)
def test_gradient_into_the_encoder(crossing, source):
    batch, states = make_batch(), encoder_states(source)
    gradients = []
    for model in crossing:
        given = states["encoder_hidden_states"].clone().requires_grad_()
        model(**batch, **{**states, "encoder_hidden_states": given}, labels=batch["input_ids"]).loss.backward()
        gradients.append(given.grad)
    close(*gradients)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("source", PADDINGS)
def test_weights_of_cross_attention(crossing, source):
    crossing.ours.set_attn_implementation("eager")
    inputs = {**make_batch(), **encoder_states(source)}
    a, b = (model(**inputs, output_attentions=True) for model in crossing)
    for kind in ("attentions", "cross_attentions"):
        assert len(getattr(a, kind)) == crossing.ours.config.num_hidden_layers
        for x, y in zip(getattr(a, kind), getattr(b, kind), strict=True):
            close(x, y)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("source", PADDINGS)
def test_cached_decoding_with_cross_attention(crossing, attention, source):
    crossing.ours.set_attn_implementation(attention)
    ids, states = make_batch()["input_ids"], encoder_states(source)
    whole = crossing.reference(ids, **states).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        close(crossing.ours(ids[:, start:end], **states, past_key_values=cache).logits, whole[:, start:end])
    assert [layer.keys.shape[-2] for layer in cache.cross_attention_cache.layers] == [9, 9]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    a, b = (model.generate(ids, **states, **options) for model in crossing)
    assert a.shape == (3, 20)
    assert torch.equal(a, b)


# ----------------------------------------------------------------------------------------------------- mutations

# What a conversion or a forward pass could get wrong, as a change to our config under the same weights.
MUTATIONS = [
    ("openai-gpt", "block_type", "pre_norm"),
    ("openai-gpt", "hidden_act", "gelu"),
    ("openai-gpt", "norm_eps", 1e-5),
    ("gpt2", "hidden_act", "gelu"),
    ("gpt2", "norm_eps", 1e-5),
    ("gpt_neo", "sliding_window", 3),
    ("gpt_neo", "sliding_window", 5),
    ("gpt_neo", "layer_types", ["sliding_attention", "full_attention"]),
    ("gpt_neo", "attention_scale", None),
    ("gptj", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
    ("gptj", "block_type", "pre_norm"),
    ("gptj", "lm_head_bias", False),
    ("gpt_neox", "rope_parameters", ROTATION),
    ("gpt_neox", "block_type", "parallel_shared_norm"),
    ("gpt_neox", "block_type", "pre_norm"),
    ("gpt_neox-sequential", "block_type", "parallel"),
    ("gpt_bigcode", "hidden_act", "gelu"),
    ("gpt_bigcode-multi-head", "norm_eps", 1e-5),
    ("opt", "hidden_act", "gelu"),
    ("opt", "position_offset", 0),
    ("opt-post-norm", "block_type", "pre_norm"),
    ("llama", "rope_parameters", {**ROTATION, "rope_theta": 110.0}),
    ("llama", "norm_eps", 1e-5),
    ("llama-llama3", "rope_parameters", ROTATION),
    ("llama-yarn", "rope_parameters", ROTATION),
    ("mistral", "sliding_window", 4),
    ("mistral", "sliding_window", 6),
    ("qwen2", "sliding_window", 6),
    ("qwen2", "attention_bias", False),
    ("qwen3", "qk_norm", False),
    ("qwen3", "layer_types", ["sliding_attention", "full_attention"]),
    ("nanochat", "final_logit_softcapping", None),
    ("nanochat", "embedding_norm", False),
    ("nanochat", "qk_norm", False),
    ("gemma3", "block_type", "pre_norm"),
    ("gemma3", "norm_type", "rmsnorm"),
    ("gemma3", "scale_embeddings", False),
    ("gemma3", "attention_scale", None),
    ("gemma3", "rope_parameters", ROTATION),
    ("gemma3", "rope_parameters", {"sliding_attention": {**ROTATION, "rope_theta": 99.0}, "full_attention": ROTATION}),
    ("gpt_oss", "attention_sinks", False),
    ("gpt_oss", "hidden_act", "silu"),
    ("gpt_oss", "num_experts_per_tok", 1),
    ("gpt_oss", "rope_parameters", ROTATION),
    ("gpt_oss", "sliding_window", 5),
    ("gpt_oss", "swiglu_limit", None),
    ("gpt_oss", "swiglu_limit", 7.0),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "field", "wrong"), MUTATIONS)
def test_a_mistake_would_be_seen(name, field, wrong, tmp_path):
    pair, batch = make_pair(name, tmp_path), make_batch()
    fields = {**pair.ours.config.to_dict(), field: wrong}
    fields["max_position_embeddings"] += pair.ours.config.position_offset - fields["position_offset"]  # the same table
    mutant = GPTForCausalLM(GPTConfig.from_dict(fields)).eval()
    mutant.load_state_dict(pair.ours.state_dict(), strict=False)  # the mistake may be to leave a weight unused
    difference = mutant(**batch).logits - pair.reference(**batch).logits
    assert difference.abs().max() > 1e-3  # a hundred times the tolerance


def test_every_reference_has_its_mistake():
    assert {name for name, _, _ in MUTATIONS} == set(REFERENCES)
