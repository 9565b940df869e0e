"""The Transformer of 2017 (arXiv:1706.03762) computes the same as transformers' Marian, in float32.

Marian's position table holds all sines and then all cosines, where the paper, and ours, alternates them. The order of a
residual stream's coordinates is of no account as long as all that reads or writes it agrees, so Marian's weights are
put in our order: then the two are equal, number by number.
"""

import pytest
import torch
from references import IDS, VOCABULARY, Pair, close, make_batch, randomise, real_tokens
from transformers import EncoderDecoderModel, MarianConfig, MarianForCausalLM, MarianMTModel

from gpt_finetune import GPTConfig, GPTForCausalLM, GPTModel

WIDTH = 32
# sine 0, cosine 0, sine 1, cosine 1, … of [all sines | all cosines]
ORDER = torch.arange(WIDTH).view(2, -1).t().flatten()
GREEDY = {
    "max_new_tokens": 12,
    "do_sample": False,
    "forced_eos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
THEIRS = {
    **IDS,
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "dropout": 0.0,
    "decoder_start_token_id": 0,
    "share_encoder_decoder_embeddings": False,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
}
OURS = {
    **IDS,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "position_embedding_type": "sinusoidal",
    "scale_embeddings": True,
    "block_type": "post_norm",
}
NAMES = {
    "encoder_attn_layer_norm": "cross_attention_layernorm",
    "self_attn_layer_norm": "post_attention_layernorm",
    "final_layer_norm": "post_feedforward_layernorm",
    "encoder_attn": "cross_attn",
    "out_proj": "o_proj",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}
PLAIN, FUSED = ([(activation, attention) for activation in ("relu", "gelu")] for attention in ("eager", "sdpa"))
READERS = ("embed_tokens", "q_proj", "k_proj", "v_proj", "up_proj")  # of the residual stream; the others write it


def reorder(theirs: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """Return the weights, or their gradients, of Marian's encoder or decoder under our names and in our order."""
    state = {}
    for name, value in theirs.items():
        if not name.startswith(f"model.{part}.") or "embed_positions" in name:  # our waves are not weights
            continue
        name = name.removeprefix(f"model.{part}.")
        for their_word, our_word in NAMES.items():
            name = name.replace(their_word, our_word)
        module, kind = name.rsplit(".", 1)
        if not module.endswith(READERS):
            value = value[ORDER]
        elif kind == "weight":
            value = value[:, ORDER]
        state[name] = value
    return state


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    mine = gradients(ours)
    mine.pop("lm_head.bias", None)  # Marian's is a constant
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        close(gradient, theirs[name], name)


def assert_same_streams(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], real: torch.Tensor) -> None:
    for x, y in zip(ours, theirs, strict=True):
        close(x[real], y[..., ORDER][real])


@pytest.fixture(scope="module", params=[*PLAIN, *FUSED], ids="-".join)
def translators(request):
    """Return the encoder-decoder, with a learned bias on the logits in the place of Marian's constant one.

    How it attends is said here: `EncoderDecoderModel` gives its parts new configs, and their layers keep the old ones.
    """
    activation, attention = request.param
    torch.manual_seed(0)
    config = MarianConfig(**THEIRS, activation_function=activation, attn_implementation="eager")
    reference = randomise(MarianMTModel(config))
    reference.final_logits_bias.normal_()
    fields = {**OURS, "hidden_act": activation, "attn_implementation": attention}
    encoder = GPTModel(GPTConfig(**fields, is_causal=False))
    decoder = GPTForCausalLM(GPTConfig(**fields, add_cross_attention=True, lm_head_bias=True))
    theirs = reference.state_dict()
    encoder.load_state_dict(reorder(theirs, "encoder"))
    weights = {f"model.{name}": value for name, value in reorder(theirs, "decoder").items()}
    head = {"lm_head.weight": weights["model.embed_tokens.weight"], "lm_head.bias": theirs["final_logits_bias"][0]}
    decoder.load_state_dict({**weights, **head})
    ours = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    ours.config.decoder_start_token_id, ours.config.pad_token_id = 0, 0
    return Pair(ours, reference)


@pytest.fixture(scope="module")
def decoders():
    """Return the decoder alone, which is a GPT."""
    torch.manual_seed(0)
    config = MarianConfig(**THEIRS, activation_function="relu", attn_implementation="eager")
    reference = randomise(MarianForCausalLM(config))
    ours = GPTForCausalLM(GPTConfig(**OURS, hidden_act="relu")).eval()
    theirs = {name: value for name, value in reference.state_dict().items() if "encoder_attn" not in name}
    weights = {f"model.{name}": value for name, value in reorder(theirs, "decoder").items()}
    ours.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return Pair(ours, reference)


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way to train:FutureWarning")
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_encoder_and_decoder(translators, padding):
    source = make_batch(padding)
    real = real_tokens(source)
    source.pop("position_ids", None)  # Marian counts padding too
    target = make_batch()["input_ids"][:, :9]
    labels = target.roll(-1, dims=1)
    labels[0, 6:] = -100
    outputs = []
    for model in translators:
        model.zero_grad()
        outputs.append(model(**source, decoder_input_ids=target, labels=labels, output_hidden_states=True))
        outputs[-1].loss.backward()
    a, b = outputs
    close(a.logits, b.logits)
    close(a.loss, b.loss)
    assert_same_streams(a.encoder_hidden_states, b.encoder_hidden_states, real)
    assert_same_streams(a.decoder_hidden_states, b.decoder_hidden_states, torch.ones_like(target).bool())
    theirs = gradients(translators.reference)
    assert_same_gradients(translators.ours.encoder, reorder(theirs, "encoder"))
    assert_same_gradients(translators.ours.decoder.model, reorder(theirs, "decoder"))


@pytest.mark.parametrize("translators", PLAIN, ids="-".join, indirect=True)
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_attention_weights(translators, padding):
    source = make_batch(padding)
    real = real_tokens(source)
    source.pop("position_ids", None)
    target = make_batch()["input_ids"][:, :9]
    a, b = (model(**source, decoder_input_ids=target, output_attentions=True) for model in translators)
    for x, y in zip(a.encoder_attentions, b.encoder_attentions, strict=True):
        close(x.transpose(1, 2)[real], y.transpose(1, 2)[real])  # (B, H, T, S) -> (tokens, H, S)
    for kind in ("decoder_attentions", "cross_attentions"):
        assert len(getattr(a, kind)) == OURS["num_hidden_layers"]
        for x, y in zip(getattr(a, kind), getattr(b, kind), strict=True):
            close(x, y)


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_translation(translators, padding):
    source = make_batch(padding)
    source.pop("position_ids", None)
    cached, reference, whole = (
        model.generate(**source, **GREEDY, use_cache=use_cache)
        for model, use_cache in ((translators.ours, True), (translators.reference, True), (translators.ours, False))
    )
    assert cached.shape == (3, 13)
    assert torch.equal(cached, reference)
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [None, "right"])
def test_decoder_alone(decoders, attention, padding):
    decoders.ours.set_attn_implementation(attention)
    batch = make_batch(padding)
    real = real_tokens(batch)
    batch.pop("position_ids", None)
    labels = batch["input_ids"].masked_fill(~real, -100)
    shifted = labels.roll(-1, dims=1)  # Marian takes labels as targets of their own place
    shifted[:, -1] = -100
    outputs = []
    for model, targets in zip(decoders, (labels, shifted), strict=True):
        model.zero_grad()
        outputs.append(model(**batch, labels=targets, output_hidden_states=True))
        outputs[-1].loss.backward()
    a, b = outputs
    close(a.logits[real], b.logits[real])
    close(a.loss, b.loss)
    assert_same_streams(a.hidden_states, b.hidden_states, real)
    assert_same_gradients(decoders.ours.model, reorder(gradients(decoders.reference), "decoder"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_text_of_the_decoder_alone(decoders, attention):
    decoders.ours.set_attn_implementation(attention)
    ids = make_batch()["input_ids"]
    a, b = (model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY) for model in decoders)
    assert a.shape == (3, 24)
    assert torch.equal(a, b)
