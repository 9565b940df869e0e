"""The cache that grows in blocks holds what transformers' dynamic one holds, whatever generation does to it."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from gpt_finetune import caching
from gpt_finetune.caching import GrowingCache, GrowingLayer


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caching, "_BLOCK", 3)


@pytest.mark.parametrize("name", ["gpt2", "modern", "sliding"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}, {"prompt_lookup_num_tokens": 3}]
)
def test_generation_writes_the_same(make_model, name, options):
    model = make_model(name)
    rows = 1 if "prompt_lookup_num_tokens" in options else 2
    ids = torch.randint(3, model.config.vocab_size, (rows, 6))
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    found = []
    for kind in (DynamicCache, GrowingCache):
        torch.manual_seed(1)
        found.append(model.generate(ids, past_key_values=kind(config=model.config), **asked, **options))
    assert torch.equal(*found)


def test_tokens_are_written_into_the_room_that_is_there():
    layer, places = GrowingLayer(), set()
    new = torch.randn(4, 2, 2, 20, 8).unbind()
    for step in range(20):
        keys, values = layer.update(*(part[..., step : step + 1, :] for part in new[:2]))
        places.add(keys.data_ptr())
    assert torch.equal(keys, new[0])
    assert torch.equal(values, new[1])
    assert len(places) < 8
    layer.crop(-5)
    keys, _ = layer.update(new[2], new[3])
    assert torch.equal(keys, torch.cat((new[0][..., :15, :], new[2]), dim=-2))
    layer.reset()
    assert torch.equal(layer.update(new[2], new[3])[1], new[3])


def test_gradients_reach_cached_keys():
    layer, first = GrowingLayer(), torch.randn(1, 2, 3, 8, requires_grad=True)
    layer.update(first, first)
    keys, _ = layer.update(first * 2, first)
    keys.sum().backward()
    assert torch.equal(first.grad, torch.full_like(first, 3.0))
