"""Root-mean-square norms in training on a CPU: torch's values, and gradients that differ by rounding alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt_finetune import GPTForCausalLM
from gpt_finetune.model import norms_gpt
from gpt_finetune.model.norms_gpt import rms_norm

SHAPES = [(3, 7, 48), (5, 32), (2, 3, 4, 16), (1, 1, 2)]


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(norms_gpt, "LARGE", 1)


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what to normalise, weights and the slope; rows differ in size, and their means are not 0."""
    x = (torch.randn(shape) + 0.5) * torch.rand(*shape[:-1], 1) * 8
    return x.to(dtype), (torch.rand(shape[-1]) + 0.5).to(dtype), (torch.randn(shape) + 0.5).to(dtype)


def derived(norm, x, weight, slope):
    x, weight = x.clone().requires_grad_(), weight if weight is None else weight.clone().requires_grad_()
    y = norm(x, weight)
    y.backward(slope)
    return y.detach(), x.grad, None if weight is None else weight.grad


def ours(x, weight):
    return rms_norm(x, weight, x.shape[-1], 1e-5, training=True)


def torchs(x, weight):
    return nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-5)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_in_float32_only_rounding_differs(shape, weighted):
    x, weight, slope = tensors(shape, torch.float32)
    weight = weight if weighted else None
    for found, expected in zip(derived(ours, x, weight, slope), derived(torchs, x, weight, slope), strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_torchs_to_the_last_bit(dtype):
    x, weight, _ = tensors((4, 9, 64), dtype)
    assert torch.equal(ours(x, weight), torchs(x, weight))
    assert torch.equal(ours(x, None), torchs(x, None))


def test_in_bfloat16_errors_are_as_small_as_stated():
    x, weight, slope = tensors((8, 64, 256), torch.bfloat16)
    _, *exact = derived(torchs, x.double(), weight.double(), slope.double())
    _, by_x, by_weight = derived(ours, x, weight, slope)
    assert error(by_x, exact[0]) < 0.0032
    assert error(by_weight, exact[1]) < 0.004


def test_strided_input_and_slope():
    x, weight, slope = tensors((3, 5, 4, 16), torch.float32)
    wide = torch.randn(3, 5, 3, 4, 16)
    wide[:, :, 1] = x
    expected = derived(torchs, x, weight, slope)
    again = derived(ours, wide[:, :, 1], weight, slope.transpose(1, 2).contiguous().transpose(1, 2))
    for a, b in zip(again, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_costs_no_pass(frozen):
    x, weight, slope = tensors((3, 7, 48), torch.float32)
    (x if frozen == "weight" else weight).requires_grad_()
    ours(x, weight).backward(slope)
    assert (x.grad is None, weight.grad is None) == (frozen == "x", frozen == "weight")


def test_nothing_but_what_it_was_given_is_kept():
    x, weight, _ = tensors((3, 7, 48), torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(x.requires_grad_(), weight)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}


def test_what_is_small_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(norms_gpt, "LARGE", 49)
    x, weight, _ = tensors((1, 48), torch.float32)
    assert "RMSNorm" not in type(ours(x.requires_grad_(), weight).grad_fn).__name__
    assert "RMSNorm" in type(ours(torch.cat((x, x)), weight).grad_fn).__name__


def test_rows_of_none():
    assert ours(torch.empty(0, 8, requires_grad=True), torch.ones(8)).shape == (0, 8)


@pytest.mark.parametrize("architecture", ["llama", "modern", "gemma3", "nanochat"])
def test_a_model_has_the_gradients_of_torchs_norm(make_config, architecture, monkeypatch):
    model = GPTForCausalLM(make_config(architecture)).train()
    ids = torch.randint(2, 500, (2, 12))

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    found = gradients()
    calls = []

    def plain(x, weight, size, eps, training):
        calls.append(training)
        return nn.functional.rms_norm(x, (size,), weight, eps)

    monkeypatch.setattr("gpt_finetune.model.layers_gpt.rms_norm", plain)
    for name, expected in gradients().items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert calls
    assert all(calls)
