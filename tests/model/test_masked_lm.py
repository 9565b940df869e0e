"""The masked language model: both directions, padding, packing, loss, saving, parity with a bidirectional Llama."""

from __future__ import annotations

import math

import pytest
import torch
from support import ARCHITECTURES
from torch import nn
from transformers import LlamaConfig, LlamaModel

from gpt_finetune.model.configuration_gpt import GPTConfig
from gpt_finetune.model.heads_gpt import GPTForMaskedLM
from gpt_finetune.model.modeling_gpt import GPTForCausalLM

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def make_masked(make_config):
    def make(architecture: str = "gpt2", **overrides) -> GPTForMaskedLM:
        fields = {"initializer_range": 0.2, "is_causal": False, **overrides}
        return GPTForMaskedLM(make_config(architecture, **fields)).eval()

    return make


def draw(*shape: int) -> torch.Tensor:
    return torch.randint(2, 512, shape)


# ------------------------------------------------------------------------------------------------------ directions


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_token_sees_both_sides_and_causally_only_one(make_masked, make_model, architecture, attention):
    x = draw(1, 8)
    changed = x.clone()
    changed[0, 6] = x[0, 6] % 500 + 3
    for model, sees in ((make_masked(architecture), True), (make_model(architecture), False)):
        model.set_attn_implementation(attention)
        difference = (model(x).logits - model(changed).logits).abs().amax(-1)[0]
        assert (difference[4:6].min() > 1e-4) == sees
        assert (difference[4:6].max() < 1e-5) != sees


def test_a_causal_configuration_is_refused(make_config):
    with pytest.raises(ValueError, match=r"is_causal=True.*is_causal=False"):
        GPTForMaskedLM(make_config())


def test_no_cache_is_made(make_masked):
    model, x = make_masked(), draw(2, 5)
    assert model.config.use_cache
    assert "past_key_values" not in model.model(x, use_cache=True)
    torch.testing.assert_close(model(x, use_cache=True).logits, model(x).logits)


def test_logits_are_those_of_a_bidirectional_llama():
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shared = {**sizes, "num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
    rope = {"rope_type": "default", "rope_theta": 5e4}
    theirs = LlamaModel(LlamaConfig(**shared, rope_parameters=dict(rope), initializer_range=0.2)).eval()
    theirs.config.is_causal = False
    for layer in theirs.layers:
        layer.self_attn.is_causal = False
    config = GPTConfig(
        **shared,
        rope_parameters=dict(rope),
        is_causal=False,
        max_position_embeddings=2048,
        position_embedding_type="rotary",
        norm_type="rmsnorm",
        norm_eps=1e-6,
        hidden_act="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
    )
    ours = GPTForMaskedLM(config).eval()
    ours.model.load_state_dict(theirs.state_dict())
    x, mask = torch.randint(2, 99, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    for padding in ((slice(0, 0), slice(0, 0)), (slice(0, 3), slice(0, 7)), (slice(9, 12), slice(5, 12))):
        mask[:] = 1
        mask[1, padding[0]], mask[2, padding[1]] = 0, 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = theirs(x, attention_mask=mask, position_ids=positions).last_hidden_state
        expected = hidden @ theirs.embed_tokens.weight.T
        found = ours(x, attention_mask=mask).logits
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)


# -------------------------------------------------------------------------------------------------- padding, packing


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_influence(make_masked, architecture, side):
    model, rows = make_masked(architecture), [draw(9), draw(5), draw(2)]
    x = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    found = model(x, attention_mask=mask).logits
    for i, row in enumerate(rows):
        torch.testing.assert_close(found[i, mask[i].bool()], model(row[None]).logits[0], **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [True, False])
def test_packed_documents_do_not_see_each_other(make_masked, architecture, attention, padded):
    model, x = make_masked(architecture, attn_implementation=attention), draw(1, 12)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    mask = torch.ones_like(x) if padded else None
    found = model(x, position_ids=positions, attention_mask=mask).logits
    torch.testing.assert_close(found[:, :5], model(x[:, :5]).logits, **CLOSE)
    torch.testing.assert_close(found[:, 5:], model(x[:, 5:]).logits, **CLOSE)


# ------------------------------------------------------------------------------------------------------------- loss


def labelled(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = draw(batch, 9)
    return x, torch.where(torch.rand(x.shape) < 0.4, x, -100)


def test_loss_is_the_cross_entropy_of_labelled_tokens_in_place(make_masked, architecture):
    model, (x, labels) = make_masked(architecture), labelled()
    output = model(x, labels=labels)
    assert output.logits.shape == (4, 9, 512)
    logs = output.logits.log_softmax(-1)
    picked = [-logs[b, t, labels[b, t]] for b in range(4) for t in range(9) if labels[b, t] != -100]
    torch.testing.assert_close(output.loss, sum(picked) / len(picked), **CLOSE)
    assert model(x, labels=torch.full_like(x, -100), num_items_in_batch=3).loss == 0
    with pytest.raises(ValueError, match="labels has 512, but vocab_size is 512"):
        model(x, labels=labels.masked_fill(labels != -100, 512))
    with pytest.raises(ValueError, match=r"labels is .* of shape \(4, 8\), but GPTForMaskedLM wants integers"):
        model(x, labels=labels[:, :8])


def test_accumulated_passes_have_loss_and_gradient_of_the_big_one(make_masked):
    model, (x, labels) = make_masked("modern"), labelled()
    whole = model(x, labels=labels).loss
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    items, losses = labels.ne(-100).sum(), []
    for part in (slice(0, 1), slice(1, 4)):
        losses.append(model(x[part], labels=labels[part], num_items_in_batch=items).loss)
        losses[-1].backward()
    torch.testing.assert_close(sum(losses), whole, **CLOSE)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], **CLOSE)


def test_it_learns_what_only_the_right_context_tells():
    """Each masked token repeats the one to its right: a causal model could do no better than chance, log 16."""
    config = GPTConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8,
        is_causal=False,
    )  # fmt: skip
    model = GPTForMaskedLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        x = torch.randint(0, 16, (64, 8))
        x[:, 3] = 16  # the mask
        labels = torch.full_like(x, -100)
        labels[:, 3] = x[:, 4]
        loss = model(x, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < math.log(16) / 10


# ---------------------------------------------------------------------------------------------- weights and saving


@pytest.mark.parametrize("extras", [{}, {"lm_head_bias": True, "final_logit_softcapping": 3.0}])
def test_a_causal_checkpoint_opens_and_is_saved_again(make_model, architecture, extras, tmp_path):
    causal = make_model(architecture, **extras)
    causal.save_pretrained(tmp_path / "causal")
    model, loading = GPTForMaskedLM.from_pretrained(tmp_path / "causal", is_causal=False, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert model.get_output_embeddings() is model.lm_head
    assert model.state_dict().keys() == causal.state_dict().keys()
    for name, value in causal.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    x = draw(2, 7)
    torch.testing.assert_close(model(x[:, :1]).logits, causal(x[:, :1]).logits, **CLOSE)  # one token: no direction
    model.save_pretrained(tmp_path / "masked")
    again = GPTForMaskedLM.from_pretrained(tmp_path / "masked").eval()
    assert again.config.is_causal is False
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert torch.equal(again(x).logits, model(x).logits)
    if extras:
        assert model(x).logits.abs().max() <= 3


def test_plans_and_ties_are_those_of_the_causal_model():
    for name in ("_tied_weights_keys", "_tp_plan", "_pp_plan", "_fsdp_plan"):
        assert getattr(GPTForMaskedLM, name) == getattr(GPTForCausalLM, name)
    assert GPTForMaskedLM.accepts_loss_kwargs


def test_the_vocabulary_can_grow(make_masked):
    model = make_masked()
    model.resize_token_embeddings(520)
    assert model(draw(1, 4)).logits.shape == (1, 4, 520)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",  # causal, each of them is compiled in test_modeling
    [name if name in ("gpt2", "gpt-oss") else pytest.param(name, marks=pytest.mark.long) for name in ARCHITECTURES],
)
def test_compiled_whole_it_gives_the_same(make_masked, architecture):
    model, (x, labels) = make_masked(architecture), labelled()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mask = torch.ones_like(x)
    mask[1, :3] = 0
    found, expected = (m(x, attention_mask=mask, labels=labels) for m in (compiled, model))
    torch._dynamo.reset()
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(found.logits[mask.bool()], expected.logits[mask.bool()], **CLOSE)
