"""The same weights compute the same as the reference implementation in transformers, in float32."""

import pytest
import torch
from references import (
    REFERENCES,
    assert_same_gradients,
    close,
    losses_and_gradients,
    make_batch,
    make_pair,
    real_tokens,
)

PADDINGS = [None, "left", "right"]


@pytest.fixture(scope="module", params=REFERENCES)
def pair(request, tmp_path_factory):
    return make_pair(request.param, tmp_path_factory.mktemp("reference"))


@pytest.fixture(params=["eager", "sdpa"])
def attention(request, pair):
    """Set how ours attends; the reference stays with plain attention, which is the definition."""
    pair.ours.set_attn_implementation(request.param)
    return request.param


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_hidden_states_loss_and_gradients(pair, attention, padding, tmp_path):
    batch = make_batch(padding)
    real = real_tokens(batch)
    a, b = losses_and_gradients(pair, batch, output_hidden_states=True)
    close(a.logits[real], b.logits[real])
    close(a.loss, b.loss)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        close(x[real], y[real])
    assert_same_gradients(pair, tmp_path)


@pytest.mark.parametrize("padding", PADDINGS)
def test_attention_weights(pair, padding):
    pair.ours.set_attn_implementation("eager")
    batch = make_batch(padding)
    real = real_tokens(batch)
    a, b = (model(**batch, output_attentions=True).attentions for model in pair)
    assert len(a) == pair.ours.config.num_hidden_layers
    for x, y in zip(a, b, strict=True):
        close(x.transpose(1, 2)[real], y.transpose(1, 2)[real])  # (B, H, T, S) -> (tokens, H, S)


@torch.no_grad()
@pytest.mark.parametrize("padding", PADDINGS)
def test_cached_decoding_in_pieces(pair, attention, padding):
    batch = make_batch(padding)
    whole = pair.reference(**batch).logits
    cache = None
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        piece = {name: value[:, start:end] for name, value in batch.items()}
        if padding:
            piece["attention_mask"] = batch["attention_mask"][:, :end]
        out = pair.ours(**piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        real = real_tokens(batch)[:, start:end]
        close(out.logits[real], whole[:, start:end][real])


@pytest.mark.parametrize("padding", [None, "left"])  # text goes on from the last column, which must not be padding
def test_generated_text(pair, attention, padding):
    batch = make_batch(padding)
    batch.pop("position_ids", None)  # both make them from the mask
    mask = real_tokens(batch).long()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    a, b = (model.generate(batch["input_ids"], attention_mask=mask, **options) for model in pair)
    assert a.shape == (3, 20)
    assert torch.equal(a, b)
