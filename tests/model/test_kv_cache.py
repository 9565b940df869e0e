"""Decoding from a cache: what it holds, and that its text is that of a model without one."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPT, LENGTH = 7, 48
WINDOWED = ["sliding", "gpt-oss", "gemma3"]  # without and with attention sinks, with two rotations; a window of 4


def ids(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(2, 512, (rows, length))


def pieces(length: int, prompt: int = PROMPT) -> list[slice]:
    """A prompt, and then one token after the other."""
    return [slice(0, prompt), *(slice(t, t + 1) for t in range(prompt, length))]


def decode(model, x, cache):
    """Return the logits of all tokens, read in pieces."""
    steps = [model(x[:, piece], past_key_values=cache, use_cache=True).logits for piece in pieces(x.shape[1])]
    return torch.cat(steps, dim=1)


def bytes_of(cache) -> int:
    """Count what a cache keeps in memory, whole storages and not only what is seen of them."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_sliding_layers_keep_their_window_and_no_more(make_model, architecture, attention):
    model, x = make_model(architecture, attn_implementation=attention), ids()
    whole, cache = model(x).logits, None
    window = model.config.sliding_window
    for piece in pieces(LENGTH):
        out = model(x[:, piece], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(out.logits, whole[:, piece], **CLOSE)
        assert cache.get_seq_length() == piece.stop
        for layer, kind in zip(cache.layers, model.config.layer_types, strict=True):
            # the next token brings its own key: of those before, it sees one less than the window
            kept = min(piece.stop, window - 1) if kind == "sliding_attention" else piece.stop
            assert layer.keys.shape[-2] == layer.values.shape[-2] == kept


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_pieces_longer_than_the_window(make_model, architecture, attention):
    model, x = make_model(architecture, attn_implementation=attention), ids()
    whole, cache = model(x).logits, DynamicCache(config=model.config)
    for piece in (slice(0, 2), slice(2, 13), slice(13, 16), slice(16, 17), slice(17, LENGTH)):
        logits = model(x[:, piece], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits, whole[:, piece], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cache_of_fixed_size(make_model, architecture, attention):
    model, x = make_model(architecture, attn_implementation=attention), ids(length=20)
    cache = StaticCache(config=model.config, max_cache_len=32)
    torch.testing.assert_close(decode(model, x, cache), model(x).logits, **CLOSE)
    for layer, kind in zip(cache.layers, model.config.layer_types, strict=True):
        assert layer.keys.shape[-2] == (32 if kind == "full_attention" else model.config.sliding_window)


@torch.no_grad()
def test_memory_of_gpt3s_alternation(make_model):
    """Half of the layers stop growing: the cache of a long text is little more than half as large."""
    kinds, window = ["full_attention", "sliding_attention"] * 2, 4
    layers = {"num_hidden_layers": len(kinds)}
    dense = make_model(**layers)
    banded = make_model(**layers, layer_types=kinds, sliding_window=window)
    x, sizes = ids(1), []
    for model in (dense, banded):
        cache = DynamicCache(config=model.config)
        decode(model, x, cache)
        sizes.append(bytes_of(cache))
    token = 2 * 4 * dense.config.hidden_size  # a key and a value, of 4 bytes a number
    assert sizes[0] == token * len(kinds) * LENGTH
    # a sliding layer shows one key less than the window, cut out of a storage that still has it
    assert sizes[1] == token * 2 * (LENGTH + window)
    assert sizes[1] / sizes[0] < 0.55


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_rows_generate_as_they_do_alone(make_model, architecture, attention):
    model, x = make_model(architecture, attn_implementation=attention), ids(3, 10)
    lengths = (10, 7, 3)
    mask = (torch.arange(10) >= 10 - torch.tensor(lengths)[:, None]).long()
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(x.masked_fill(mask == 0, 0), attention_mask=mask, **options)
    for row, length in enumerate(lengths):
        own = x[row : row + 1, 10 - length :]
        alone = model.generate(own, attention_mask=torch.ones_like(own), **options)
        assert torch.equal(together[row, 10 - length :], alone[0])
