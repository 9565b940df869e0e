"""The same weights give the same logits as the reference implementation in transformers, in float32."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from gpt_finetune import GPTConfig, GPTForCausalLM

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def gpt2_blocks(theirs: dict[str, torch.Tensor], norms: dict[str, str]) -> dict[str, torch.Tensor]:
    """Rename the blocks of GPT-1 and GPT-2, which keep projections transposed and q, k, v in one matrix."""
    state = {}
    for kind in ("weight", "bias"):
        for i in range(SIZE["num_hidden_layers"]):
            here, there = f"model.layers.{i}", f"transformer.h.{i}"
            for ours_name, their_name in norms.items():
                state[f"{here}.{ours_name}.{kind}"] = theirs[f"{there}.{their_name}.{kind}"]
            fused = theirs[f"{there}.attn.c_attn.{kind}"].t().chunk(3)
            for name, part in zip("qkv", fused, strict=True):
                state[f"{here}.self_attn.{name}_proj.{kind}"] = part
            for ours_name, their_name in {
                "self_attn.o_proj": "attn.c_proj",
                "mlp.up_proj": "mlp.c_fc",
                "mlp.down_proj": "mlp.c_proj",
            }.items():
                state[f"{here}.{ours_name}.{kind}"] = theirs[f"{there}.{their_name}.{kind}"].t()
    return state


def gpt2_pair(attn: str):
    no_dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    reference = GPT2LMHeadModel(
        GPT2Config(**SIZE, **IDS, **no_dropout, n_positions=64, initializer_range=0.2, attn_implementation=attn)
    ).eval()
    config = GPTConfig(**SIZE, **IDS, max_position_embeddings=64, attn_implementation=attn)
    ours = GPTForCausalLM(config).eval()
    theirs = reference.state_dict()
    state = {
        "model.embed_tokens.weight": theirs["transformer.wte.weight"],
        "model.embed_positions.weight": theirs["transformer.wpe.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
        "model.norm.weight": theirs["transformer.ln_f.weight"],
        "model.norm.bias": theirs["transformer.ln_f.bias"],
        **gpt2_blocks(theirs, {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}),
    }
    ours.load_state_dict(state)
    return ours, reference


def gpt1_pair():
    no_dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    reference = OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(**SIZE, **no_dropout, n_positions=64, initializer_range=0.2)
    ).eval()
    config = GPTConfig(**SIZE, max_position_embeddings=64, block_type="post_norm")
    ours = GPTForCausalLM(config).eval()
    theirs = reference.state_dict()
    state = {
        "model.embed_tokens.weight": theirs["transformer.tokens_embed.weight"],
        "model.embed_positions.weight": theirs["transformer.positions_embed.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
        **gpt2_blocks(theirs, {"post_attention_layernorm": "ln_1", "post_feedforward_layernorm": "ln_2"}),
    }
    ours.load_state_dict(state)
    return ours, reference


def gpt3_pair():
    """GPT-3 was never released; GPT-Neo has its alternation of dense and local layers."""
    layers = SIZE["num_hidden_layers"]
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_layers": layers + 1, "num_heads": 4, "window_size": 4}
    attention = [[["global", "local"], 2]]
    reference = GPTNeoForCausalLM(
        GPTNeoConfig(**sizes, **IDS, attention_types=attention, max_position_embeddings=64, initializer_range=0.2)
    ).eval()
    kinds = ["full_attention", "sliding_attention"] * 2
    fields = {**SIZE, "num_hidden_layers": layers + 1, "layer_types": kinds, "sliding_window": 4}
    ours = GPTForCausalLM(GPTConfig(**fields, **IDS, max_position_embeddings=64)).eval()
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "lm_head": "lm_head",
    }
    for i in range(layers + 1):
        here, there = f"model.layers.{i}", f"transformer.h.{i}"
        names |= {f"{here}.input_layernorm": f"{there}.ln_1", f"{here}.post_attention_layernorm": f"{there}.ln_2"}
        names |= {f"{here}.mlp.up_proj": f"{there}.mlp.c_fc", f"{here}.mlp.down_proj": f"{there}.mlp.c_proj"}
        for ours_name, their_name in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}.items():
            names[f"{here}.self_attn.{ours_name}_proj"] = f"{there}.attn.attention.{their_name}"
    theirs, state = reference.state_dict(), ours.state_dict()
    for key in state:
        module, kind = key.rsplit(".", 1)
        value = theirs.get(f"{names[module]}.{kind}", torch.zeros_like(state[key]))  # q, k, v have no bias there
        scale = 8**0.5 if module.endswith("q_proj") else 1.0  # and scores are not divided by sqrt(head size)
        state[key] = value * scale
    ours.load_state_dict(state)
    return ours, reference


def llama_pair(attn: str):
    shared = {**SIZE, **IDS, "num_key_value_heads": 2, "intermediate_size": 48, "attn_implementation": attn}
    rope = {"rope_type": "default", "rope_theta": 5e4}
    reference = LlamaForCausalLM(LlamaConfig(**shared, rope_parameters=dict(rope), initializer_range=0.2)).eval()
    config = GPTConfig(
        **shared,
        rope_parameters=dict(rope),
        max_position_embeddings=2048,
        position_embedding_type="rotary",
        norm_type="rmsnorm",
        norm_eps=1e-6,
        hidden_act="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    )
    ours = GPTForCausalLM(config).eval()
    ours.load_state_dict(reference.state_dict())  # the same names by design
    return ours, reference


@pytest.fixture(params=["gpt2", "llama"])
def pair(request):
    return {"gpt2": gpt2_pair, "llama": llama_pair}[request.param]("sdpa")


def batch(padding: str | None):
    ids = torch.randint(2, 99, (3, 12))
    mask = torch.ones_like(ids)
    for row, length in enumerate((0, 3, 7)):
        if padding == "left":
            mask[row, :length] = 0
        elif padding == "right":
            mask[row, 12 - length :] = 0
    return ids.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [gpt2_pair, llama_pair])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_logits_loss_and_hidden_states(make, attn, padding):
    ours, reference = make(attn)
    ids, mask = batch(padding)
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "labels": labels, "output_hidden_states": True}
    if padding:
        inputs["attention_mask"] = mask
    a, b = ours(**inputs), reference(**inputs)
    real = mask.bool()
    torch.testing.assert_close(a.logits[real], b.logits[real], **TOLERANCE)
    torch.testing.assert_close(a.loss, b.loss, **TOLERANCE)
    assert len(a.hidden_states) == len(b.hidden_states)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(x[real], y[real], **TOLERANCE)


@pytest.mark.parametrize("make", [gpt1_pair, gpt3_pair])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_gpt1_and_gpt3(make, attn):
    ours, reference = make()
    ours.set_attn_implementation(attn)
    ids, _ = batch(None)
    a, b = (model(input_ids=ids, labels=ids, output_hidden_states=True) for model in (ours, reference))
    torch.testing.assert_close(a.logits, b.logits, **TOLERANCE)
    torch.testing.assert_close(a.loss, b.loss, **TOLERANCE)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    assert torch.equal(ours.generate(ids, attention_mask=mask, **options), reference.generate(ids, **options))


def test_attention_weights(pair):
    ours, reference = pair
    ours.set_attn_implementation("eager")
    reference.set_attn_implementation("eager")
    ids, _ = batch(None)
    a, b = (model(ids, output_attentions=True).attentions for model in pair)
    assert len(a) == SIZE["num_hidden_layers"]
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE)


def test_gradients(pair):
    ours, reference = pair
    ids, _ = batch(None)
    for model in pair:
        model.train()
        model(ids, labels=ids).loss.backward()
    a = ours.get_input_embeddings().weight.grad
    b = reference.get_input_embeddings().weight.grad
    torch.testing.assert_close(a, b, **TOLERANCE)
    assert a.abs().max() > 1e-3


@pytest.mark.parametrize("padding", [None, "left"])
def test_cached_decoding(pair, padding):
    ids, mask = batch(padding)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    caches = [None, None]
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        logits = []
        for i, model in enumerate(pair):
            out = model(
                ids[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=caches[i],
                use_cache=True,
            )
            caches[i] = out.past_key_values
            logits.append(out.logits)
        real = mask[:, start:end].bool()
        torch.testing.assert_close(logits[0][real], logits[1][real], **TOLERANCE)
    if padding is None:  # and the pieces are the whole
        whole = pair[0](ids).logits
        torch.testing.assert_close(logits[0], whole[:, 7:], **TOLERANCE)


@pytest.mark.parametrize("padding", [None, "left"])
def test_generated_text(pair, padding):
    ids, mask = batch(padding)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    a, b = (model.generate(ids, **options) for model in pair)
    assert a.shape == (3, 20)
    assert torch.equal(a, b)
