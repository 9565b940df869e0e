"""Cross-attention as an option: the 2017 encoder-decoder and captioning, through transformers' own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    EncoderDecoderModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from gpt_finetune import GPTForCausalLM, GPTModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DECODERS = ["gpt2", "transformer-2017", "llama", "gpt-oss", "nanochat"]
BOS = 1
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def full(architecture: str) -> dict[str, Any]:
    """Return what takes an architecture's sliding layers away: cross-attention has no window."""
    return {"layer_types": None, "sliding_window": None} if architecture == "gpt-oss" else {}


def finish(model: Any) -> Any:
    model.config.pad_token_id = 0
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = BOS
    return model.eval()


@pytest.fixture
def make_pair(make_config):
    def make(architecture: str = "transformer-2017", **overrides: Any) -> EncoderDecoderModel:
        fields = {"initializer_range": 0.2, **full(architecture), **overrides}
        encoder = GPTModel(make_config(architecture, **fields, is_causal=False))
        decoder = GPTForCausalLM(make_config(architecture, **fields, add_cross_attention=True))
        return finish(EncoderDecoderModel(encoder=encoder, decoder=decoder))

    return make


@pytest.fixture
def make_captioner(make_config):
    def make() -> VisionEncoderDecoderModel:
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        encoder = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=4), add_pooling_layer=False)
        fields = {"initializer_range": 0.2, "add_cross_attention": True, "cross_attention_hidden_size": 24}
        return finish(VisionEncoderDecoderModel(encoder=encoder, decoder=GPTForCausalLM(make_config("gpt2", **fields))))

    return make


def sources(padding: str | None = None) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 512, (3, 9))
    mask = torch.ones_like(ids)
    for row, length in enumerate((0, 2, 5)):
        if padding == "left":
            mask[row, :length] = 0
        elif padding == "right":
            mask[row, 9 - length :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def targets() -> torch.Tensor:
    return torch.randint(3, 512, (3, 6))


def assert_same(a: PreTrainedModel, b: PreTrainedModel, **inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(**inputs).logits, b(**inputs).logits, atol=0, rtol=0)


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_weight_learns(make_pair, architecture):
    model = make_pair(architecture).train()
    model(**sources("right"), labels=targets()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_generating_with_and_without_a_cache(make_pair, architecture, padding):
    model, source = make_pair(architecture), sources(padding)
    for options in (GREEDY, {**GREEDY, "num_beams": 3}):
        cached = model.generate(**source, **options)
        assert cached.shape == (3, 9)
        assert torch.equal(cached, model.generate(**source, **options, use_cache=False))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_padding_of_the_source_changes_nothing(make_pair, backend):
    model, source, target = make_pair("gpt2"), sources("right"), targets()
    for part in (model.encoder, model.decoder):
        part.set_attn_implementation(backend)
    together = model(**source, decoder_input_ids=target).logits
    for row, length in enumerate((9, 7, 4)):
        alone = model(input_ids=source["input_ids"][row : row + 1, :length], decoder_input_ids=target[row : row + 1])
        torch.testing.assert_close(together[row], alone.logits[0], **CLOSE)


def test_the_encoder_looks_both_ways_and_the_decoder_does_not(make_pair):
    model, source, target = make_pair(), sources(), targets()
    later = source["input_ids"].clone()
    later[:, -1] = 7
    before, after = model(**source, decoder_input_ids=target), model(input_ids=later, decoder_input_ids=target)
    assert (before.encoder_last_hidden_state - after.encoder_last_hidden_state)[:, 0].abs().max() > 1e-3
    assert (before.logits - after.logits)[:, 0].abs().max() > 1e-3
    target[:, -1] = 7
    again = model(**source, decoder_input_ids=target)
    torch.testing.assert_close(again.logits[:, :-1], before.logits[:, :-1], **CLOSE)


def test_backends_may_be_switched_when_it_stands(make_pair):
    """transformers then hands masks of one kind to layers of another: `eager` must understand them, too."""
    model, source, target = make_pair("gpt2"), sources("right"), targets()
    found = []
    for backend in ("sdpa", "eager", "sdpa"):
        model.set_attn_implementation(backend)
        found.append(model(**source, decoder_input_ids=target).logits)
    torch.testing.assert_close(found[1], found[0], **CLOSE)
    torch.testing.assert_close(found[2], found[0], **CLOSE)


def test_cross_attention_weights(make_pair):
    model = make_pair("gpt2")
    for part in (model.encoder, model.decoder):
        part.set_attn_implementation("eager")
    source = sources("left")
    outputs = model(**source, decoder_input_ids=targets(), output_attentions=True)
    assert [tuple(weights.shape) for weights in outputs.cross_attentions] == [(3, 4, 6, 9)] * 2
    assert [tuple(weights.shape) for weights in outputs.decoder_attentions] == [(3, 4, 6, 6)] * 2
    seen = outputs.cross_attentions[0].sum((1, 2))
    assert not seen[source["attention_mask"] == 0].any()


@pytest.mark.parametrize("architecture", DECODERS)
def test_saved_and_loaded(make_pair, architecture, tmp_path):
    model = make_pair(architecture)
    model.save_pretrained(tmp_path)
    loaded, info = EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(model, loaded, **sources(), decoder_input_ids=targets())
    if model.decoder.config.tie_word_embeddings:
        assert loaded.decoder.lm_head.weight is loaded.decoder.model.embed_tokens.weight


def test_made_of_two_trained_models(make_config, tmp_path):
    GPTForCausalLM(make_config("gpt2")).save_pretrained(tmp_path)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path, encoder_is_causal=False)
    assert not model.encoder.config.is_causal
    assert model.decoder.config.add_cross_attention
    assert torch.equal(model.encoder.embed_tokens.weight, model.decoder.model.embed_tokens.weight)


def test_widths_may_differ(make_config):
    encoder = GPTModel(make_config("gpt2", hidden_size=48, is_causal=False))
    decoder = GPTForCausalLM(make_config("gpt2", add_cross_attention=True))
    model = finish(EncoderDecoderModel(encoder=encoder, decoder=decoder))
    assert model.enc_to_dec_proj.weight.shape == (32, 48)  # transformers' own projection
    model(**sources(), labels=targets()).loss.backward()


@pytest.mark.slow
def test_it_learns_to_reverse(make_pair, tmp_path):
    """A task that only a working encoder, cross-attention and position signal can solve, under Trainer."""
    rows = torch.randint(3, 20, (512, 6))
    dataset = [{"input_ids": row, "labels": row.flip(0)} for row in rows]
    model = make_pair(initializer_range=0.1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=400,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    Trainer(model=model, args=arguments, train_dataset=dataset).train()
    fresh = torch.randint(3, 20, (64, 6))
    written = model.eval().generate(input_ids=fresh, **{**GREEDY, "max_new_tokens": 6})[:, 1:]
    assert (written == fresh.flip(1)).float().mean() > 0.95


def test_captioning(make_captioner, tmp_path):
    model, pixels = make_captioner(), torch.randn(3, 3, 16, 16)
    model.train()
    model(pixel_values=pixels, labels=targets()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    caption = model.generate(pixels, **GREEDY)
    assert torch.equal(caption, model.generate(pixels, **GREEDY, use_cache=False))
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert_same(model, loaded, pixel_values=pixels, decoder_input_ids=targets())


def test_states_and_option_belong_together(make_config):
    states, ids = torch.randn(1, 4, 32), torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match=r"encoder_hidden_states are missing.*add_cross_attention=True"):
        GPTModel(make_config("gpt2", add_cross_attention=True))(ids)
    with pytest.raises(ValueError, match=r"encoder_hidden_states are given.*add_cross_attention=False"):
        GPTModel(make_config("gpt2"))(ids, encoder_hidden_states=states)
