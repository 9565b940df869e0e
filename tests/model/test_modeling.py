"""What every architecture does: attention backends, masks, caches, checkpointing, loss, initial weights."""

import math

import pytest
import torch
from support import ARCHITECTURES
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from gpt_finetune import GPTConfig, GPTForCausalLM, GPTModel
from gpt_finetune.model import backends_gpt
from gpt_finetune.model.attention_gpt import GPTAttention
from gpt_finetune.model.layers_gpt import GPTMLP, SinusoidalPositions

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(2, 512, (rows, length))


def test_auto_classes_know_the_model_type(make_config, architecture):
    config = make_config(architecture)
    assert isinstance(AutoConfig.for_model("gpt_finetune"), GPTConfig)
    assert isinstance(AutoModel.from_config(config), GPTModel)
    assert isinstance(AutoModelForCausalLM.from_config(config), GPTForCausalLM)


def assert_backends_agree(model, other, padding):
    x = ids()
    mask = torch.ones_like(x)
    if padding:
        mask[1, slice(0, 5) if padding == "left" else slice(7, 12)] = 0
    logits = {}
    for backend in ("sdpa", other):
        model.set_attn_implementation(backend)
        with torch.no_grad():
            logits[backend] = model(x, attention_mask=mask if padding else None).logits[mask.bool()]
    torch.testing.assert_close(logits["sdpa"], logits[other], **CLOSE)


AGREEING = [("eager", None), *((other, side) for other in ("eager", "flex_attention") for side in ("left", "right"))]


@pytest.mark.parametrize(("other", "padding"), AGREEING)
def test_attention_backends_agree(make_model, architecture, other, padding):
    assert_backends_agree(make_model(architecture), other, padding)


@pytest.mark.parametrize(
    "architecture",  # in the gate one of each kind: kernels take seconds to compile
    [name if name in ("gpt2", "sliding") else pytest.param(name, marks=pytest.mark.long) for name in ARCHITECTURES],
)
def test_flex_attention_agrees_without_padding(make_model, architecture):
    assert_backends_agree(make_model(architecture), "flex_attention", None)


def test_a_token_sees_only_what_came_before(make_model, architecture):
    model, x = make_model(architecture), ids(1)
    y = x.clone()
    y[0, 6] = (y[0, 6] + 1) % 512
    a, b = model(x).logits, model(y).logits
    torch.testing.assert_close(a[:, :6], b[:, :6], **CLOSE)
    assert (a[:, 6:] - b[:, 6:]).abs().max() > 1e-3


def test_a_sliding_layer_forgets(make_model):
    model = make_model(
        "sliding", layer_types=["sliding_attention"] * 2, sliding_window=3, position_embedding_type="none"
    )
    x = ids(1)
    y = x.clone()
    y[0, 0] = (y[0, 0] + 1) % 512
    a, b = model(x).logits, model(y).logits
    # two layers with a window of 3 see 2 x 2 tokens back, and no further
    torch.testing.assert_close(a[:, 5:], b[:, 5:], **CLOSE)
    assert (a[:, 4] - b[:, 4]).abs().max() > 1e-4


def test_left_padding_changes_nothing(make_model, architecture):
    model, x = make_model(architecture), ids(1, 8)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), x], dim=1)
    mask = (torch.arange(12) >= 4).long()[None]
    out = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    torch.testing.assert_close(out.logits[:, 4:], model(x).logits, **CLOSE)


def test_packed_documents_do_not_see_each_other(make_model, architecture):
    model, x = make_model(architecture), ids(1)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = model(x, position_ids=positions).logits
    torch.testing.assert_close(packed[:, :5], model(x[:, :5]).logits, **CLOSE)
    torch.testing.assert_close(packed[:, 5:], model(x[:, 5:]).logits, **CLOSE)


def test_cache_gives_what_the_whole_gives(make_model, architecture):
    model, x = make_model(architecture), ids()
    whole = model(x).logits
    first = model(x[:, :7], use_cache=True)
    steps = [first.logits]
    cache = first.past_key_values
    for t in range(7, 12):
        steps.append(model(x[:, t : t + 1], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **CLOSE)


def test_generation_with_and_without_cache(make_model, architecture):
    model, x = make_model(architecture), ids()
    options = {"attention_mask": torch.ones_like(x), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(x, use_cache=True, **options), model.generate(x, use_cache=False, **options))


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_generation_with_each_cache(make_model, cache):
    model, x = make_model("modern"), ids()
    options = {"attention_mask": torch.ones_like(x), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    plain = model.generate(x, **options)
    assert torch.equal(model.generate(x, cache_implementation=cache, disable_compile=True, **options), plain)


def test_beams_and_sampling_run(make_model):
    model, x = make_model("modern"), ids()
    options = {"attention_mask": torch.ones_like(x), "max_new_tokens": 4, "eos_token_id": None}
    assert model.generate(x, num_beams=3, **options).shape == (2, 16)
    assert model.generate(x, do_sample=True, top_p=0.9, temperature=0.7, **options).shape == (2, 16)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, architecture, reentrant):
    model, x = make_model(architecture), ids()
    model.train()
    model(x, labels=x).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(x, labels=x).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], **CLOSE)


def test_every_parameter_learns(make_model, architecture):
    model, x = make_model(architecture), ids()
    model(x, labels=x).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # adding the same vector to all keys of a head cancels in the softmax, unless keys are then normalised or rotated
    assert all(name.endswith("k_proj.bias") for name in without)


def test_loss_begins_at_that_of_a_uniform_guess(make_config, architecture):
    model = GPTForCausalLM(make_config(architecture, vocab_size=4096, hidden_size=128, num_hidden_layers=2))
    x = torch.randint(0, 4096, (4, 64))
    assert model(x, labels=x).loss.item() == pytest.approx(math.log(4096), rel=0.05)


@pytest.mark.parametrize("scaled", [True, False])
def test_initial_weights(make_config, scaled):
    layers = 8
    config = make_config(hidden_size=128, num_hidden_layers=layers, scale_residual_init=scaled)
    model = GPTForCausalLM(config)
    into_stream = 0.02 / math.sqrt(2 * layers) if scaled else 0.02
    for module in model.modules():
        if isinstance(module, GPTAttention):
            assert module.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.o_proj.weight.std().item() == pytest.approx(into_stream, rel=0.05)
        if isinstance(module, GPTMLP):
            assert module.down_proj.weight.std().item() == pytest.approx(into_stream, rel=0.05)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert module.bias.abs().max() == 0
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(128))


def test_tied_and_untied_heads(make_config):
    tied, untied = GPTForCausalLM(make_config("gpt2")), GPTForCausalLM(make_config("llama"))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_sinusoids_are_those_of_the_paper(make_config):
    config = make_config("transformer-2017")
    waves = SinusoidalPositions(config)(torch.zeros(1, 64, 32), torch.arange(64)[None])[0]
    for position, i in ((0, 0), (3, 1), (17, 5), (63, 15)):
        angle = position / 10_000 ** (2 * i / 32)
        assert waves[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert waves[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_built_on_meta_and_loaded_is_the_same(make_model, architecture, tmp_path):
    model, x = make_model(architecture), ids()
    model.save_pretrained(tmp_path)
    again = GPTForCausalLM.from_pretrained(tmp_path)  # transformers builds on the meta device, then fills in
    assert torch.equal(model(x).logits, again.eval()(x).logits)


def test_save_in_shards_and_load(make_model, tmp_path):
    model, x = make_model("llama"), ids()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(model(x).logits, GPTForCausalLM.from_pretrained(tmp_path).eval()(x).logits)


def test_embeddings_resize_with_the_tie_kept(make_model):
    model = make_model("gpt2")
    model.resize_token_embeddings(520)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(torch.tensor([[519, 3]])).logits.shape == (1, 2, 520)
    assert model.config.vocab_size == 520


@pytest.mark.parametrize("bad", [512, 60_000, -1])
def test_token_id_outside_the_vocabulary_is_named(make_model, bad):
    with pytest.raises(ValueError, match=rf"token id {bad}, but vocab_size is 512"):
        make_model()(torch.tensor([[3, bad]]))


def test_input_beyond_learned_positions_is_named(make_model):
    with pytest.raises(ValueError, match="position_ids reaches 64, but max_position_embeddings is 64"):
        make_model()(ids(1, 65))


def test_ids_and_embeddings_exclude_each_other(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    embeddings = model.get_input_embeddings()(x := ids())
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(x).logits, **CLOSE)


def test_only_the_logits_asked_for(make_model):
    model, x = make_model(), ids()
    torch.testing.assert_close(model(x, logits_to_keep=1).logits, model(x).logits[:, -1:], **CLOSE)


def test_loss_divides_by_the_count_it_is_given(make_model):
    model, x = make_model(), ids()
    mean = model(x, labels=x).loss
    torch.testing.assert_close(model(x, labels=x, num_items_in_batch=torch.tensor(1)).loss, mean * 2 * 11, **CLOSE)


def test_dropout_acts_in_training_only(make_model):
    model, x = make_model("gpt2", embedding_dropout=0.5, attention_dropout=0.5, residual_dropout=0.5), ids()
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)


def test_compiles_without_a_graph_break(make_model, architecture):
    torch.compiler.reset()  # each architecture counts its own recompilations
    model, x = make_model(architecture), ids()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, use_cache=False).logits, model(x).logits, **CLOSE)


@pytest.mark.parametrize("architecture", ["sliding", "gpt-oss", "gemma3"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("short", [512, 32])
def test_long_texts_slide_in_blocks(make_config, monkeypatch, architecture, packed, padding, is_causal, short):
    """Texts of many windows: sdpa computes them block by block, masks of long ones so too; eager whole."""
    monkeypatch.setattr(backends_gpt, "SHORT", short)
    made, write = [], backends_gpt.WindowMask.between
    monkeypatch.setattr(backends_gpt.WindowMask, "between", lambda *given: (made.append(write(*given)), made[-1])[1])
    kinds = ["sliding_attention", "full_attention"]
    config = make_config(architecture, layer_types=kinds, sliding_window=5, initializer_range=0.2, is_causal=is_causal)
    model, x = GPTModel(config).eval(), ids(2, 33)
    mask = torch.ones_like(x)
    if padding:
        mask[1, slice(0, 7) if padding == "left" else slice(26, 33)] = 0
    arguments = {"attention_mask": mask} if padding else {}
    if packed:
        arguments["position_ids"] = torch.cat((torch.arange(12), torch.arange(21))).expand(2, -1)
    hidden, gradients, direction = [], [], torch.randn(2, 33, 32)[mask.bool()]
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        model.zero_grad()
        hidden.append(model(x, **arguments).last_hidden_state[mask.bool()])
        (hidden[-1] * direction).sum().backward()
        gradients.append(model.embed_tokens.weight.grad.clone())
    torch.testing.assert_close(*hidden, **CLOSE)
    torch.testing.assert_close(*gradients, atol=1e-6 * float(gradients[1].abs().max()), rtol=1e-5)
    assert gradients[1].abs().max() > 1
    blocks = [5] * 6 + [3]
    assert [mask.shape[-2] for mask in made] == (blocks if short == 32 else [])
    assert all(mask.shape[-1] <= 15 for mask in made)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_cached_compiled_or_masked_by_hand_has_whole_masks(make_config, monkeypatch, attention):
    monkeypatch.setattr(backends_gpt, "SHORT", 0)
    kinds = ["sliding_attention", "full_attention"]
    config = make_config("sliding", layer_types=kinds, sliding_window=3, attn_implementation=attention)
    model, x, seen = GPTModel(config).eval(), ids(1, 9), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, given, named: seen.append(named["attention_mask"]), with_kwargs=True)

    def kinds_of_masks(**more) -> list[bool]:
        seen.clear()
        model(x, **more)
        return [isinstance(mask, backends_gpt.WindowMask) for mask in seen]

    assert kinds_of_masks(use_cache=False) == [attention == "sdpa", False]
    assert kinds_of_masks(use_cache=False, attention_mask=torch.ones_like(x)) == [attention == "sdpa", False]
    assert kinds_of_masks(past_key_values=DynamicCache(config=config)) == [False, False]
    whole = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    assert kinds_of_masks(use_cache=False, attention_mask=whole) == [False, False]
    plain = model(x, use_cache=False).last_hidden_state
    for parts in ([model], model.layers):  # as a whole, and each layer by itself, as Accelerate compiles regions
        torch.compiler.reset()
        for part in parts:
            part.compile(backend="eager")
        torch.testing.assert_close(model(x, use_cache=False).last_hidden_state, plain, **CLOSE)
        for part in parts:
            part._compiled_call_impl = None
