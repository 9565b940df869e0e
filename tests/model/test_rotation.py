"""Rotary positions in training on a CPU: the formula's values and gradients, but for rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import rotate_half

from gpt_finetune.model import rotation_gpt
from gpt_finetune.model.rotation_gpt import turn

SHAPES = [(2, 3, 7, 16), (1, 1, 1, 2), (3, 4, 5, 8)]  # (B, H, T, K)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(rotation_gpt, "LARGE", 1)


def angles(shape: tuple[int, ...], rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, (rows, 1, T, K)."""
    half = torch.rand(rows, 1, shape[2], shape[3] // 2) * 100
    both = torch.cat((half, half), dim=-1)
    return both.cos(), both.sin()


def formula(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn as transformers' models do."""
    return x * cos + rotate_half(x) * sin


def as_projected(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return (B, H, T, K) as a view of a projection (B, T, H * K)."""
    batch, heads, tokens, size = shape
    return torch.randn(batch, tokens, heads * size).to(dtype).view(batch, tokens, heads, size).transpose(1, 2)


def derived(way: Any, x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what comes out, and the slope of x for a slope that grows with the place."""
    x = x.detach().requires_grad_()
    y = way(x, *given)
    slope = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, slope)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_angles", [False, True])
def test_in_float32_only_rounding_differs(shape, own_angles):
    x, given = as_projected(shape), angles(shape, shape[0] if own_angles else 1)
    for found, expected in zip(derived(turn, x, *given), derived(formula, x, *given), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_in_bfloat16_it_rounds_once():
    """The formula is exact to float32, the precision of the angles; here what it gives is rounded."""
    shape = (2, 4, 33, 64)
    x, given = as_projected(shape, torch.bfloat16), angles(shape)
    y, by_x = derived(turn, x, *given)
    assert y.dtype == by_x.dtype == torch.bfloat16
    exact, _ = derived(formula, x, *given)
    assert exact.dtype == torch.float32
    last_bit = exact.abs() * 2**-8 + 1e-6
    assert ((y - exact).abs() <= last_bit).all()
    assert (y != exact.bfloat16()).float().mean() < 0.001  # where float32 rounds otherwise, half-way between two


def test_angles_of_a_narrow_stream():
    shape = (2, 4, 9, 16)
    x, given = as_projected(shape, torch.bfloat16), [each.bfloat16() for each in angles(shape)]
    exact = formula(x.float(), *(each.float() for each in given))
    torch.testing.assert_close(derived(turn, x, *given)[0], exact.bfloat16(), atol=1e-6, rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_lie_as_projections_gave_them(dtype):
    """So do slopes, which products give one head behind the other: no copies on either side."""
    shape = (2, 3, 8, 16)
    x, given = as_projected(shape, dtype).requires_grad_(), angles(shape)
    y = turn(x, *given)
    slope = torch.randn(shape).to(dtype)
    for made in (y, torch.autograd.grad(y, x, slope)[0]):
        assert made.transpose(1, 2).is_contiguous()


def test_strided_slope():
    shape = (2, 3, 8, 16)
    x, given = as_projected(shape).detach().requires_grad_(), angles(shape)
    slope = torch.randn(2, 8, 3, 16).transpose(1, 2)
    found, expected = (torch.autograd.grad(way(x, *given), x, slope)[0] for way in (turn, formula))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_nothing_but_the_angles_is_kept():
    shape, kept = (2, 3, 8, 16), []
    given = angles(shape)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        turn(as_projected(shape).requires_grad_(), *given)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in given}


def test_what_is_small_or_not_trained_is_left_to_the_formula(monkeypatch):
    shape = (2, 3, 8, 16)
    x, given = as_projected(shape), angles(shape)
    assert "Rotation" in type(turn(x.requires_grad_(), *given).grad_fn).__name__
    monkeypatch.setattr(rotation_gpt, "LARGE", x.numel() + 1)
    assert "Rotation" not in type(turn(x, *given).grad_fn).__name__
    monkeypatch.setattr(rotation_gpt, "LARGE", 1)
    assert torch.equal(turn(x.detach(), *given), formula(x.detach(), *given))
    assert turn(x.detach().bfloat16(), *given).dtype == torch.float32


@pytest.mark.parametrize("architecture", ["llama", "modern", "gpt-j", "gpt-oss", "gemma3"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_has_the_gradients_of_the_formula(make_model, architecture, attention, monkeypatch):
    model = make_model(architecture).train()
    model.set_attn_implementation(attention)
    ids = torch.arange(2, 50).view(4, 12)
    found = []
    for large in (1, 2**30):
        monkeypatch.setattr(rotation_gpt, "LARGE", large)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)
