"""GELU by tanh on a CPU: torch's values and gradients, but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gpt_finetune.model import gelu_gpt
from gpt_finetune.model.gelu_gpt import TanhGELU

SHAPES = [(2, 3, 48), (5, 1), (7, 100), (2, 1, 3, 17), (33,)]
NARROW = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
DTYPES = [torch.float32, *([torch.bfloat16] if NARROW else [])]  # that oneDNN knows on this CPU
torchs = nn.GELU(approximate="tanh")


@pytest.fixture(autouse=True)
def all_is_served(monkeypatch):
    """By oneDNN, on a CPU without AVX-512, too, where it does not pay, but gives the same."""
    monkeypatch.setattr(gelu_gpt, "LARGE", 1)
    monkeypatch.setattr(gelu_gpt, "has_wide_vectors", torch.backends.mkldnn.is_available)


def derived(act, x, slope):
    x = x.clone().requires_grad_()
    y = act(x)
    y.backward(slope)
    return y, x.grad


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_only_rounding_differs(shape):
    x, slope = 3 * torch.randn(shape), torch.randn(shape)
    found = derived(TanhGELU(), x, slope)
    assert "TanhGELU" in type(found[0].grad_fn).__name__
    for ours, plain in zip(found, derived(torchs, x, slope), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not NARROW, reason="oneDNN has no bfloat16 without AVX-512, and is not asked for it there")
def test_each_bfloat16_number_is_rounded_once():
    """All 65,536 of them: whatever is not a number stays so, and what differs from torch's does in the last bit."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).view(256, 256)
    found, plain = TanhGELU()(every), torchs(every)
    assert torch.equal(found.isnan(), plain.isnan())
    assert torch.equal(found.isinf(), plain.isinf())
    known = plain.isfinite()
    exact = torchs(every[known].double())
    apart = (found[known].double() - exact).abs()
    assert (apart <= exact.abs() * 2**-8 + 1e-6).all()
    assert (found[known] != plain[known]).float().mean() < 0.01
    slope = torch.ones_like(every)
    torch.testing.assert_close(*(derived(act, every, slope)[1] for act in (TanhGELU(), torchs)), equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_otherwise_is_served_too(dtype):
    x = torch.randn(6, 4, 5).to(dtype).transpose(0, 2)
    torch.testing.assert_close(TanhGELU()(x), torchs(x), atol=1e-6, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6)


def test_nothing_but_the_input_is_kept():
    x, kept = torch.randn(4, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        TanhGELU()(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_what_is_small_or_of_another_kind_is_torchs(monkeypatch):
    """Without AVX-512 everything is."""
    x = torch.randn(4, 8, requires_grad=True)
    for given in (x.double(), x.half(), x.to("meta"), nn.Parameter(x.detach())):
        made = TanhGELU()(given)
        assert "TanhGELU" not in type(made.grad_fn).__name__
        assert made.device.type == "meta" or torch.equal(made, torchs(given))
    for name, value in (("LARGE", 33), ("has_wide_vectors", lambda: False)):
        with monkeypatch.context() as patch:
            patch.setattr(gelu_gpt, name, value)
            assert torch.equal(TanhGELU()(x), torchs(x))


@pytest.mark.parametrize("empty", [(0, 8), (3, 0)])
def test_nothing_stays_nothing(empty):
    assert TanhGELU()(torch.empty(empty)).shape == empty


def test_it_is_a_gelu_to_whom_it_concerns():
    """What recomputes activations, and what prints a model, knows it."""
    act = copy.deepcopy(TanhGELU())
    assert isinstance(act, nn.GELU)
    assert act.extra_repr() == "approximate='tanh'"


def test_traced_it_is_torchs():
    x = torch.randn(4, 8)
    graph = torch.export.export(TanhGELU(), (x,)).graph
    assert any("gelu" in str(node.target) for node in graph.nodes)
    assert not any("mkldnn" in str(node.target) for node in graph.nodes)
    torch.testing.assert_close(torch.compile(TanhGELU(), backend="aot_eager")(x), torchs(x))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "gpt-j"])
def test_a_model_has_torchs_gradients(make_model, architecture, monkeypatch):
    model = make_model(architecture).train()
    assert any(isinstance(module, TanhGELU) for module in model.modules())
    ids = torch.arange(2, 50).view(4, 12)
    found, served = [], []
    apply = gelu_gpt._TanhGELU.apply
    monkeypatch.setattr(gelu_gpt._TanhGELU, "apply", lambda x: served.append(x) or apply(x))
    for large in (1, 2**30):
        monkeypatch.setattr(gelu_gpt, "LARGE", large)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(served) == model.config.num_hidden_layers
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)
