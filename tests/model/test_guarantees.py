"""What a user of transformers takes for granted of any model: generation in every mode, caches, export, new tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GenerationConfig, StaticCache
from transformers.generation import ContinuousBatchingConfig
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from gpt_finetune import (
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(2, 512, (rows, length))


def generate(model, x: torch.Tensor, **options) -> torch.Tensor:
    return model.generate(x, attention_mask=torch.ones_like(x), **{**GREEDY, **options})


# ------------------------------------------------------------------------------------------------ modes of generation


@pytest.mark.parametrize(
    "options", [{"top_k": 20, "top_p": 0.9}, {"num_beams": 3}, {"min_p": 0.05, "temperature": 2.0}]
)
def test_samples_follow_the_seed(make_model, options):
    model, x, texts = make_model("modern"), ids(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generate(model, x, do_sample=True, num_return_sequences=2, **options))
    assert texts[0].shape == (4, 20)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_beams_do_not_depend_on_the_cache(make_model, architecture):
    model, x = make_model(architecture), ids()
    beams = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    cached, plain = (generate(model, x, use_cache=cache, **beams) for cache in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, **CLOSE)
    best = generate(model, x, return_dict_in_generate=True, num_beams=3, output_scores=True)
    assert torch.equal(best.sequences, cached.sequences[::2])


def test_guesses_of_an_assistant_change_nothing(make_model, architecture):
    """A small model, or the prompt itself, guesses several tokens, and the model takes what it would have said."""
    model, x = make_model(architecture), ids(1)
    own = generate(model, x)
    small = make_model("gpt2", num_hidden_layers=1)
    small.generation_config.eos_token_id = None
    assert torch.equal(generate(model, x, assistant_model=small), own)
    assert torch.equal(generate(model, x, assistant_model=copy.deepcopy(model)), own)
    assert torch.equal(generate(model, x, prompt_lookup_num_tokens=3), own)


def test_a_decoding_loop_of_ones_own(make_model):
    def two_tokens(model, input_ids, **kwargs):
        for _ in range(2):
            input_ids = torch.cat([input_ids, model(input_ids).logits[:, -1:].argmax(-1)], dim=1)
        return input_ids

    model, x = make_model("modern"), ids()
    assert torch.equal(generate(model, x, custom_generate=two_tokens), generate(model, x, max_new_tokens=2))


def test_text_goes_on_from_embeddings(make_model, architecture):
    model, x = make_model(architecture), ids()
    mask, embeddings = torch.ones_like(x), model.get_input_embeddings()(x)
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}):
        new = model.generate(inputs_embeds=embeddings, attention_mask=mask, **GREEDY, **options)
        assert torch.equal(new, generate(model, x, **options)[:, 12:])


def test_text_goes_on_from_a_cache(make_model, architecture):
    model, x = make_model(architecture), ids()
    first = generate(model, x, max_new_tokens=5, return_dict_in_generate=True)
    rest = generate(model, first.sequences, max_new_tokens=3, past_key_values=first.past_key_values)
    assert torch.equal(rest, generate(model, x))


def test_a_prompt_read_in_chunks(make_model, architecture):
    model, x = make_model(architecture), ids()
    assert torch.equal(generate(model, x, prefill_chunk_size=5), generate(model, x))


def test_all_that_generation_can_return(make_model):
    model, x = make_model("gpt-oss", attn_implementation="eager"), ids()
    asked = {"output_attentions": True, "output_hidden_states": True, "output_scores": True, "output_logits": True}
    out = generate(model, x, return_dict_in_generate=True, **asked)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    for step, length in enumerate([12] + [1] * 7):
        assert [tuple(h.shape) for h in out.hidden_states[step]] == [(2, length, 32)] * (layers + 1)
        assert [tuple(a.shape[:3]) for a in out.attentions[step]] == [(2, heads, length)] * layers
        torch.testing.assert_close(out.scores[step], out.logits[step])
    torch.testing.assert_close(torch.stack(out.logits, dim=1), model(out.sequences).logits[:, 11:-1], **CLOSE)


@torch.no_grad()
def test_flex_attention_continues_text(make_model):
    """torch 2.13's kernel, compiled for a CPU, mixes wrong values where a cache leaves one query."""
    model, x = make_model("llama"), ids()
    mask = torch.ones_like(x)
    mask[1, :3] = 0
    expected = model(x, attention_mask=mask).logits
    cache = model(x[:, :10], attention_mask=mask[:, :10], use_cache=True).past_key_values
    model.set_attn_implementation("flex_attention")
    for t in (10, 11):
        step = model(x[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache)
        torch.testing.assert_close(step.logits[:, 0], expected[:, t], **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "sliding", "gpt-oss"])
def test_continuous_batching_writes_the_same_text(make_model, architecture, attention):
    """Prompts of several lengths share batches and a paged cache; sliding layers and sinks know it."""
    model = make_model(architecture)
    prompts = [ids(1, length)[0].tolist() for length in (4, 7, 15)]
    alone = [generate(model, torch.tensor([prompt]))[0, len(prompt) :].tolist() for prompt in prompts]
    model.set_attn_implementation(attention)
    pages = ContinuousBatchingConfig(page_size=8, num_blocks=32, max_batch_tokens=32)
    options = GenerationConfig(**{**GREEDY, "eos_token_id": -1})
    outputs = model.generate_batch(prompts, options, continuous_batching_config=pages, warmup=False)
    assert [outputs[f"req_{i}"].generated_tokens for i in range(3)] == alone


# ------------------------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("beams", [1, 2])
def test_a_cache_of_fixed_size_writes_the_same_text(make_model, architecture, beams):
    model, x = make_model(architecture), ids()
    fixed = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(generate(model, x, num_beams=beams, **fixed), generate(model, x, num_beams=beams))


def test_a_cache_of_fixed_size_serves_again(make_model, architecture):
    model, expected = make_model(architecture), []
    cache = StaticCache(config=model.config, max_cache_len=32)
    for x in (ids(), ids()):
        expected = generate(model, x)
        assert torch.equal(generate(model, x, past_key_values=cache, disable_compile=True), expected)
        cache.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="moves keys between a GPU and memory")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_a_cache_in_memory_writes_the_same_text(make_model, cache):
    model, x = make_model("modern").cuda(), ids().cuda()
    assert torch.equal(generate(model, x, cache_implementation=cache, disable_compile=True), generate(model, x))


@pytest.mark.parametrize(("backend", "installed"), [("quanto", is_optimum_quanto_available), ("hqq", is_hqq_available)])
def test_a_quantized_cache_runs(make_model, backend, installed):
    if not installed():
        pytest.skip(f"{backend} is not installed")
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "nbits": 4}}
    assert generate(make_model("modern"), ids(), **options).shape == (2, 20)


# ----------------------------------------------------------------------------------------------- compiled and exported


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-oss"])
def test_a_decoding_step_compiles_without_a_graph_break(make_model, architecture):
    torch.compiler.reset()
    model, x = make_model(architecture), ids()
    step = torch.compile(model, fullgraph=True, backend="eager")
    caches = [StaticCache(config=model.config, max_cache_len=16) for _ in range(2)]
    with torch.no_grad():
        for piece in (x[:, :9], x[:, 9:10], x[:, 10:11], x[:, 11:]):
            compiled, plain = (f(piece, past_key_values=c).logits for f, c in zip((step, model), caches, strict=True))
            torch.testing.assert_close(compiled, plain, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "sliding", "gpt-oss"])
def test_an_exported_graph_computes_the_same(make_model, make_config, architecture):
    """Traced once, it serves other batch sizes, lengths and paddings."""
    # torch 2.13 does not see that the lengths which sinks make on sdpa order as they do, and refuses to leave them open
    attention = "eager" if make_config(architecture).attention_sinks else "sdpa"
    model, x = make_model(architecture, use_cache=False, attn_implementation=attention), ids()
    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("tokens", min=2, max=64)}
    inputs = {"input_ids": x, "attention_mask": torch.ones_like(x)}
    shapes = dict.fromkeys(inputs, sizes)
    graph = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=shapes, strict=False).module()
    y = ids(3, 20)
    mask = (torch.arange(20) >= torch.tensor([0, 3, 7])[:, None]).long()
    expected = model(y, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(graph(input_ids=y, attention_mask=mask).logits[mask.bool()], expected, **CLOSE)


# ------------------------------------------------------------------------------------------- vocabulary, heads, outputs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_new_tokens_leave_the_old_alone(make_model, tied, bias, tmp_path):
    """The output head grows with its bias; the soft cap stays; the resized model is what is saved."""
    options = {"tie_word_embeddings": tied, "lm_head_bias": bias, "final_logit_softcapping": 0.5}
    model, x = make_model("gpt2", **options), ids()
    if bias:
        torch.nn.init.normal_(model.lm_head.bias)
    before = model(x).logits
    model.resize_token_embeddings(520, mean_resizing=False)
    after = model(x).logits
    assert after.shape[-1] == model.config.vocab_size == model.lm_head.out_features == 520
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert (model.lm_head.bias is not None) == bias
    assert after.abs().max() <= 0.5
    torch.testing.assert_close(after[..., :512], before, **CLOSE)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(torch.tensor([[519, 3]])).logits, model(torch.tensor([[519, 3]])).logits)
    model.resize_token_embeddings(512)
    torch.testing.assert_close(model(x).logits, before, **CLOSE)


HEADS = [GPTForSequenceClassification, GPTForTokenClassification, GPTForQuestionAnswering, GPTForMultipleChoice]


@pytest.mark.parametrize("head", HEADS)
def test_a_pretrained_body_gets_only_a_new_head(make_model, head, tmp_path):
    model = make_model("gpt-oss")
    model.save_pretrained(tmp_path)
    new, report = head.from_pretrained(tmp_path, output_loading_info=True)
    own = {name for name, _ in new.named_parameters() if not name.startswith("model.")}
    assert report["missing_keys"] == own
    assert report["unexpected_keys"] == {"lm_head.weight"}
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in new.named_parameters() if n not in own)


def test_the_body_of_a_saved_model_opens_alone(make_model, architecture, tmp_path):
    model, x = make_model(architecture), ids()
    model.save_pretrained(tmp_path)
    body = GPTModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(model.logits(body(x).last_hidden_state), model(x).logits)


def test_rows_do_not_depend_on_their_batch(make_model, architecture):
    model, x = make_model(architecture), ids(5)
    alone = torch.cat([model(row[None]).logits for row in x])
    torch.testing.assert_close(model(x).logits, alone, **CLOSE)


def test_outputs_are_recorded_as_asked(make_model, architecture):
    model, x = make_model(architecture, attn_implementation="eager"), ids()
    layers, experts = model.config.num_hidden_layers, model.config.num_local_experts
    out = model(x, output_hidden_states=True, output_attentions=True, output_router_logits=True, labels=x)
    assert len(out.hidden_states) == layers + 1
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, 12, 12)] * layers
    # a model without experts has no router, and says so by recording nothing
    shapes = [] if experts is None else [(24, experts)] * layers
    assert [tuple(logits.shape) for logits in out.router_logits] == shapes
    assert (out.aux_loss is None) == (experts is None)
    if out.aux_loss is not None:
        plain = model(x, labels=x)
        assert plain.router_logits is None
        torch.testing.assert_close(out.loss, plain.loss + model.config.router_aux_loss_coef * out.aux_loss)
