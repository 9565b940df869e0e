"""What makes steps in bfloat16 cheaper on a CPU: short rows by plain products, a narrow residual stream."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gpt_finetune.model import backends_gpt
from gpt_finetune.model.attention_gpt import GPTAttention
from gpt_finetune.training.lean import make_lean

LEAN = SimpleNamespace(residual="bfloat16", short_attention="products")
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def attention(make_config, **changes) -> GPTAttention:
    return GPTAttention(make_config("llama", num_key_value_heads=2, **changes), 0)


def masks(tokens: int) -> dict[str, torch.Tensor | None]:
    both = (torch.rand(3, 1, tokens, tokens) < 0.7) | torch.eye(tokens, dtype=torch.bool)
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril() & both
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    row = torch.ones(3, 1, 1, tokens, dtype=torch.bool)
    row[1, ..., 7:] = False
    return {"causal": None, "boolean": seen, "added": added, "ahead": both, "one for all queries": row}


def calls(monkeypatch) -> list[torch.Size]:
    """Return a list that grows by the shape of what is computed by products."""
    seen: list[torch.Size] = []
    before = backends_gpt._Products.apply
    monkeypatch.setattr(
        backends_gpt._Products, "apply", lambda *given: (seen.append(given[0].shape), before(*given))[1]
    )
    return seen


@pytest.mark.parametrize("block", [4, 11, 128])
@pytest.mark.parametrize("mask", ["causal", "boolean", "added", "ahead", "one for all queries"])
def test_products_are_attention_in_exact_arithmetic(make_config, monkeypatch, mask, block):
    """The formulas, forward and backward, with the rounding to bfloat16 taken away."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    monkeypatch.setattr(backends_gpt, "BLOCK", block)
    layer, found, seen = attention(make_config), [], calls(monkeypatch)
    query, key, value = (torch.randn(3, heads, 11, 16, requires_grad=True) for heads in (4, 2, 2))
    slope, given = torch.randn(3, 11, 4, 16), masks(11)[mask]
    layer.num_key_value_groups = 2
    for layer.by_products in (False, True):
        attend = layer.choose(backends_gpt.sdpa_attention_forward)
        mixed, _ = attend(layer, query, key, value, given, scaling=0.3)
        found.append([mixed, *torch.autograd.grad(mixed, (query, key, value), slope)])
    assert len(seen) == 1  # by_products, the second time
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("mask", ["causal", "boolean", "one for all queries"])
def test_no_weights_are_kept(make_config, monkeypatch, mask):
    """Queries, keys and values in bfloat16, (3, 4, 64, 16), and a mask that all heads share."""
    layer, kept, seen = attention(make_config), {}, calls(monkeypatch)
    layer.num_key_value_groups, layer.by_products = 1, True
    query, key, value = (torch.randn(3, 4, 64, 16, requires_grad=True) for _ in range(3))

    def note(given):
        kept[given.data_ptr()] = given.untyped_storage().nbytes()
        return given

    attend = layer.choose(backends_gpt.sdpa_attention_forward)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda given: given):
        mixed, _ = attend(layer, query, key, value, masks(64)[mask], scaling=0.3)
    assert mixed.requires_grad and len(seen) == 1
    assert sum(kept.values()) <= 2 * (3 * query.numel() + 3 * 64 * 64)


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("mask", ["causal", "added", "ahead"])
def test_dropout_by_products_is_that_of_the_formulas(make_config, monkeypatch, mask, block):
    """Against softmax and dropout as autograd differentiates them, with the same weights dropped."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    monkeypatch.setattr(backends_gpt, "BLOCK", block)
    dropped, before = [], backends_gpt.draw_kept
    monkeypatch.setattr(backends_gpt, "draw_kept", lambda *given: (dropped.append(before(*given)), dropped[-1])[1])
    layer, given = attention(make_config), masks(11)[mask]
    layer.num_key_value_groups, layer.by_products = 2, True
    query, key, value = (torch.randn(3, heads, 11, 16, requires_grad=True) for heads in (4, 2, 2))
    attend, slope = layer.choose(backends_gpt.sdpa_attention_forward), torch.randn(3, 11, 4, 16)
    mixed, _ = attend(layer, query, key, value, given, scaling=0.3, dropout=0.4)
    found = [mixed, *torch.autograd.grad(mixed, (query, key, value), slope)]

    spans, stay = backends_gpt.spans_of_keys(layer, given, 11, 11), torch.zeros(12, 11, 11)
    assert len(spans) == len(dropped) == (3 if block == 4 and mask != "ahead" else 1)
    for (rows, keys), kept in zip(spans, dropped, strict=True):
        stay[:, rows, keys] = kept.float()
    assert 0 < stay.sum() < stay.numel()
    lowest = torch.finfo(torch.float32).min
    bias = torch.full((11, 11), lowest).triu(1) if given is None else given
    bias = torch.zeros(bias.shape).masked_fill(~bias, lowest) if bias.dtype == torch.bool else bias
    scores = 0.3 * query @ key.repeat_interleave(2, dim=1).mT + bias
    weights = scores.softmax(-1) * stay.view(3, 4, 11, 11) / (1 - round(0.4 * 65536) / 65536)
    mixed = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    for one, other in zip(found, [mixed, *torch.autograd.grad(mixed, (query, key, value), slope)], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_what_no_query_sees_is_not_computed(make_config):
    """A prefix that looks ahead, or keys before the row, need all pairs."""
    layer = attention(make_config)
    length, blocks = 3 * backends_gpt.BLOCK - 1, 3
    square = torch.ones(length, length, dtype=torch.bool)
    added = torch.zeros(length, length).masked_fill(square.triu(1), torch.finfo(torch.float32).min)
    both_ways = attention(make_config, is_causal=False)
    for module, mask, keys, wanted in (
        (layer, None, length, blocks),
        (layer, square.tril()[None, None], length, blocks),
        (layer, added[None, None], length, blocks),
        (layer, square.tril(2)[None, None], length, 1),
        (layer, torch.cat((square[:, :9], square.tril()), 1)[None, None], length + 9, 1),
        (both_ways, None, length, 1),
    ):
        spans = backends_gpt.spans_of_keys(module, mask, length, keys)
        assert len(spans) == wanted
        pairs = torch.zeros(length, keys, dtype=torch.bool)
        for rows, seen in spans:
            pairs[rows, seen] = True
        assert wanted == 1 or pairs.sum() < 0.7 * length * keys
        assert pairs.all() if wanted == 1 else pairs[square.tril()].all()


def test_products_take_short_rows_in_bfloat16_and_dropout_and_in_training_only(make_config, make_model, monkeypatch):
    from gpt_finetune import GPTForCausalLM

    seen, ids = calls(monkeypatch), torch.randint(2, 500, (2, 12))
    torch.manual_seed(0)
    model = GPTForCausalLM(make_config("gpt2", attn_implementation="sdpa")).train()

    def learn(dtype: torch.dtype = torch.bfloat16, x: torch.Tensor = ids) -> int:
        seen.clear()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(x, labels=x).loss.backward()
        return len(seen)

    assert learn() == 0  # nobody has asked
    make_lean(model, LEAN)
    assert learn() == model.config.num_hidden_layers
    assert learn(torch.float32) == 0
    monkeypatch.setattr(backends_gpt, "SHORT", 11)
    assert learn() == 0
    monkeypatch.setattr(backends_gpt, "SHORT", 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen.clear()
        model(ids)
    assert not seen
    model.config.attention_dropout = 0.1  # which the fused kernel has not, on a CPU: longer rows gain, too
    monkeypatch.setattr(backends_gpt, "SHORT", 11)
    assert learn() == learn(torch.float32) == model.config.num_hidden_layers
    model.config.attention_dropout = 1e-6  # which 16 bits cannot tell from none
    assert learn() == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lean_steps_have_the_gradients_of_float32_within_bfloat16(make_model, architecture, checkpointing):
    """As close as autocast alone comes, give or take: the roundings are of one size."""
    model, ids = make_model(architecture, attn_implementation="sdpa", initializer_range=0.05).train(), None
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(2, 500, (4, 24))
    found = {}
    for name, lean, dtype in (
        ("exact", False, torch.float32),
        ("autocast", False, torch.bfloat16),
        ("lean", True, torch.bfloat16),
    ):
        make_lean(model, LEAN if lean else SimpleNamespace())
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            whole = {"skip_logits": False} if name == "autocast" else {}  # as transformers computes its loss
            model(ids, labels=ids, output_router_logits=False, **whole).loss.backward()
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def error(name: str) -> float:
        return float((found[name] - found["exact"]).norm() / found["exact"].norm())

    assert 0 < error("lean") < 2.5 * error("autocast")


def test_packed_documents_do_not_meet_by_products(make_model, monkeypatch):
    seen, model = calls(monkeypatch), make_model("llama", attn_implementation="sdpa").train()
    make_lean(model, LEAN)
    x, positions = torch.randint(2, 500, (2, 12)), torch.cat((torch.arange(5), torch.arange(7))).expand(2, -1)
    other = x.clone()
    other[:, :5] = torch.randint(2, 500, (2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (model.model(given, position_ids=positions).last_hidden_state for given in (x, other))
    assert len(seen) == 2 * model.config.num_hidden_layers
    assert torch.equal(one[:, 5:], two[:, 5:])
    assert not torch.equal(one[:, :5], two[:, :5])


def test_the_stream_is_narrow_under_autocast_only(make_model):
    model, ids = make_model("gpt2"), torch.randint(2, 500, (1, 6))
    make_lean(model, LEAN)
    with torch.autocast("cpu", torch.bfloat16):
        assert {s.dtype for s in model(ids, output_hidden_states=True).hidden_states} == {torch.bfloat16}
    assert model(ids).logits.dtype == torch.float32
    make_lean(model, SimpleNamespace(residual="float32"))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, output_hidden_states=True).hidden_states[-1].dtype == torch.float32


def test_a_trainer_makes_its_model_lean_as_the_section_says(make_model, tmp_path):
    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.trainer import GPTTrainer

    for residual, attention_, narrow, products in (
        ("bfloat16", "products", torch.bfloat16, True),
        ("float32", "fused", None, False),
    ):
        config = TrainConfig(residual=residual, short_attention=attention_, max_steps=1)
        model = make_model("gpt2")
        GPTTrainer(model=model, args=training_arguments(config, tmp_path, evaluate=False))
        assert model.model.residual_dtype is narrow
        assert [layer.self_attn.by_products for layer in model.model.layers] == [products] * len(model.model.layers)
