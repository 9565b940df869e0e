"""Dropout on a CPU: how much it drops, what it leaves, and when torch's own does it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt_finetune.model import dropout_gpt
from gpt_finetune.model.dropout_gpt import GPTDropout, draw_kept


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(3, 333, 1001), (999_999,)])
def test_as_much_is_dropped_as_was_asked_for(p, shape):
    torch.manual_seed(0)
    kept = draw_kept(torch.Size(shape), p)
    assert kept.shape == shape
    drops = 1 - kept.double()
    spread = (p * (1 - p) / drops.numel()) ** 0.5
    assert abs(float(drops.mean()) - p) < 5 * spread + 0.5 / 65536
    # neighbours, which come of one number of torch's, have nothing to do with each other
    flat = drops.flatten()[: drops.numel() // 4 * 4].view(-1, 4)
    lanes = flat.mean(0)
    assert (lanes - p).abs().max() < 10 * spread + 0.5 / 65536
    for first, second in ((0, 1), (0, 3), (1, 2), (2, 3)):
        together = float((flat[:, first] * flat[:, second]).mean() - lanes[first] * lanes[second])
        assert abs(together) < 10 * p * (1 - p) / drops.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_rest_grows_and_slopes_go_where_values_went(dtype):
    torch.manual_seed(0)
    layer, x = GPTDropout(0.3), torch.randn(64, 65, dtype=dtype, requires_grad=True)
    y = layer(x)
    slope = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, slope)
    kept, grown = y != 0, 1 / (1 - round(0.3 * 65536) / 65536)
    assert y.dtype == found.dtype == dtype
    assert 0.6 < kept.float().mean() < 0.8
    torch.testing.assert_close(y, torch.where(kept, x * grown, 0))
    torch.testing.assert_close(found, torch.where(kept, slope * grown, 0))
    torch.manual_seed(0)
    x = torch.randn(64, 65, dtype=dtype, requires_grad=True)
    assert torch.equal(layer(x), y)  # a seed fixes it
    assert not torch.equal(layer(x), y)


def test_nothing_is_drawn_where_nothing_is_dropped():
    x, before = torch.randn(8), torch.get_rng_state()
    assert GPTDropout(0.5).eval()(x) is x
    assert GPTDropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_where_it_does_not_serve_torch_drops(monkeypatch):
    asked = []
    monkeypatch.setattr(dropout_gpt, "draw_kept", lambda *given: asked.append(given))
    x = torch.ones(16)
    assert not GPTDropout(1.0)(x).any()
    assert GPTDropout(1e-7)(x).shape == x.shape  # too little for 16 bits
    assert GPTDropout(0.5)(torch.ones(2, device="meta")).device.type == "meta"
    compiled = torch.compile(GPTDropout(0.5), backend="eager")
    assert set(compiled(x).tolist()) <= {0.0, 2.0}
    assert not asked
    with pytest.raises(TypeError):  # the stand-in returns nothing
        GPTDropout(0.5)(x)
    assert len(asked) == 1


def test_the_model_has_no_other(make_model, architecture):
    drops = [module for module in make_model(architecture).modules() if isinstance(module, nn.Dropout)]
    assert drops
    assert {type(module) for module in drops} == {GPTDropout}
