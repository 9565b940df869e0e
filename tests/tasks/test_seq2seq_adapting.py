"""Adapters on encoder-decoders: what each method trains, what is saved and merged, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from support import ARCHITECTURES
from transformers import EncoderDecoderModel

from gpt_finetune import GPTForCausalLM, GPTModel, preset
from gpt_finetune.adaptation.bases import fingerprint_of
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.memory import describe
from gpt_finetune.adaptation.merging import load_adapters, merge
from gpt_finetune.adaptation.methods import adapt, load_base
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.build import ModelConfig
from gpt_finetune.errors import InputError
from gpt_finetune.report.heads import HEADS, adapter_snippet
from gpt_finetune.tasks.seq2seq_model import check_adapt, check_model
from gpt_finetune.training.pairs import is_pair

ABLE = [name for name, method in METHODS.items() if method.pairs and name != "full"]
# what a method trains, by the ends of names in both halves
TRAINED = {
    "top_layers": r"(encoder|decoder\.model)\.(layers\.1|norm)\..*",
    "norms": r".*norm\.weight",
    "head": r"decoder\.model\.embed_tokens\.weight|decoder\.lm_head\.weight",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of an encoder-decoder of two layers each."""
    torch.manual_seed(0)
    fields = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, **ARCHITECTURES["modern"]}
    fields |= {"num_hidden_layers": 2, "initializer_range": 0.2}
    encoder = GPTModel(preset("tiny", **fields, is_causal=False))
    decoder = GPTForCausalLM(preset("tiny", **fields, add_cross_attention=True))
    pair = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    pair.config.pad_token_id, pair.config.decoder_start_token_id = 0, 1
    folder = tmp_path_factory.mktemp("pair")
    pair.save_pretrained(folder)
    return str(folder)


def batch():
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(2, 500, (2, 9), generator=generator) for _ in range(2))
    return {"input_ids": ids, "decoder_input_ids": labels.roll(1, 1), "labels": labels}


def fit(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model):
    return model.eval()(**batch()).logits


@pytest.mark.parametrize("method", ABLE)
def test_each_method_learns_on_both_halves_and_is_saved_and_merged(method, base, tmp_path):
    whole = load_base(base, AdaptConfig(method="full"))
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    model = adapt(whole, AdaptConfig(method=method, rank=4, top_layers=1))
    assert is_pair(model)
    losses = fit(model)
    assert losses[-1] < losses[0]
    assert describe(model, 2, 9).trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if METHODS[method].peft is None:
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed == trained == {name for name in before if re.fullmatch(TRAINED[method], name)}
        return
    for part in ("encoder.layers.0.self_attn", "decoder.model.layers.1.self_attn", "layers.1.cross_attn"):
        assert any(part in name for name in trained), part
    assert not any("lm_head" in name or "embed_tokens" in name for name in trained)
    wanted = logits(model)
    save_adapter(model, tmp_path)
    again = load_adapters(load_base(base, AdaptConfig()), {"adapter": tmp_path})
    torch.testing.assert_close(logits(again), wanted, atol=2e-5, rtol=1e-5)
    merged = merge(again)
    assert type(merged) is EncoderDecoderModel
    torch.testing.assert_close(logits(merged), wanted, atol=5e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(EncoderDecoderModel.from_pretrained(tmp_path / "merged")), logits(merged))


def test_layers_of_the_cross_attention_can_be_named(base):
    model = adapt(load_base(base, AdaptConfig()), AdaptConfig(rank=2, target_modules=["cross_attn.q_proj"]))
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.decoder.model.layers.{i}.cross_attn.q_proj" for i in range(2)}


def test_a_fingerprint_is_of_both_halves(base):
    model = load_base(base, AdaptConfig())
    first = fingerprint_of(base)
    assert fingerprint_of(model) == fingerprint_of(adapt(model, AdaptConfig(rank=4))) == first
    other = load_base(base, AdaptConfig())
    with torch.no_grad():
        other.decoder.model.layers[0].cross_attn.q_proj.weight[0, 0] += 1
    assert fingerprint_of(other) != first


def test_the_card_says_how_to_load_it(base):
    code = adapter_snippet(HEADS["EncoderDecoderModel"], base, "there", "Hello", own_tokenizer=True)
    assert "import gpt_finetune" in code
    assert "AutoModelForSeq2SeqLM.from_pretrained(base)" in code
    assert "trust_remote_code" not in code


@pytest.mark.parametrize(
    ("adapting", "from_pretrained", "message"),
    [
        ({"method": "prompt_tuning"}, True, r"adapt\.method = 'prompt_tuning': it does not work on an encoder-decoder"),
        ({"method": "eva"}, True, r"adapt\.method = 'eva': it does not work.*Use one of full, lora"),
        ({"quantization": "int8"}, True, r"adapt\.quantization = 'int8': an encoder-decoder is not quantised"),
        ({"method": "lora"}, False, r"adapt\.method = 'lora': a new model has learned nothing"),
        ({"method": "lorra"}, True, r"adapt\.method = 'lorra'.*'lora'"),
    ],
)
def test_what_cannot_be_adapted(adapting, from_pretrained, message, base):
    with pytest.raises(InputError, match=message):
        check_adapt(AdaptConfig(**adapting), ModelConfig(from_pretrained=base if from_pretrained else None))


def test_new_cross_attention_is_trained_whole(tmp_path, make_model):
    make_model("modern").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"adapt\.method = 'lora': the cross-attention is new.*adapt\.method=full"):
        check_adapt(AdaptConfig(), ModelConfig(from_pretrained=str(tmp_path)))


def test_what_is_no_base(base, tmp_path):
    with pytest.raises(InputError, match=r"model\.overrides = .*a checkpoint's architecture is what it is"):
        check_model(ModelConfig(from_pretrained=base, overrides={"hidden_size": 8}), (4, 4))
    with pytest.raises(InputError, match=r"data\.max_target_length = 9999: the model has only"):
        check_model(ModelConfig(from_pretrained=base), (4, 9999))
    (tmp_path / "config.json").write_text('{"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}}')
    with pytest.raises(InputError, match=r"model\.from_pretrained = .*"):
        check_model(ModelConfig(from_pretrained=str(tmp_path)), (4, 4))
    halves = '"encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "encoder-decoder", {halves}}}')
    with pytest.raises(InputError, match="a half of it is of type bert"):
        check_model(ModelConfig(from_pretrained=str(tmp_path)), (4, 4))


def test_adapting_itself_refuses_prompts_on_pairs(base):
    with pytest.raises(InputError, match="it does not work on an encoder-decoder"):
        adapt(load_base(base, AdaptConfig()), AdaptConfig(method="prefix_tuning"))
