"""Quantised matrices and torch's products with them, one class a kernel.

Shapes: N rows of activations, O outputs, I inputs, G groups of inputs.
"""
# ruff: noqa: D102 - `Kernel` says of each method what it does

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

GROUPS = (32, 64, 128)  # what torch's 4-bit kernel takes, 256 left out: too coarse
_BLOCK = 64  # outputs that the 4-bit kernel takes at once, on the widest processor
# Rows from which 8-bit weights are spelt out as floats first: that costs about what 30 rows cost in the kernel.
_MANY = 32


class Kernel(Protocol):
    """One matrix, quantised and laid out for its product."""

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        """Take the matrix as it is stored."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: (N, I) -> (N, O), in the dtype of `x`."""

    def stored(self) -> Tensor:
        """Return the matrix as `quantize` made it."""

    def nbytes(self) -> int:
        """Return what it takes in memory, in bytes, its scale left out."""

    @staticmethod
    def missing() -> str:
        """Say what this machine's torch lacks for it; nothing if it works."""

    @staticmethod
    def fits(outputs: int, inputs: int, group_size: int) -> bool:
        """Tell whether the kernel takes this shape."""

    @staticmethod
    def empty(outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor]:
        """Return an empty matrix and scale as they are stored."""

    @staticmethod
    def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        """Return the stored matrix and its scale of weights (O, I)."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits, symmetrically: (O, I) -> int8 (O, I), float32 scale (O,)."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # 127: the largest of int8
    return (weight / scale[:, None]).round_().to(torch.int8).contiguous(), scale


class _EightBit:
    """What both 8-bit kernels share: how the matrix is made and stored."""

    @staticmethod
    def fits(outputs: int, inputs: int, group_size: int) -> bool:
        return inputs % 16 == 0  # what the kernels take in one vector

    @staticmethod
    def empty(outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor]:
        return torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)

    @staticmethod
    def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        return quantize_rows(weight)


class PackedEight(_EightBit):
    """int8 weights, bfloat16 activations: `torch._weight_int8pack_mm`, which is slow for other dtypes."""

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        self.weight, self.scale, self.short_scale = weight, scale, scale.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) >= _MANY:
            return functional.linear(x, self.weight.to(x.dtype)).mul_(self.scale.to(x.dtype))
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.short_scale).to(x.dtype)

    def stored(self) -> Tensor:
        return self.weight

    def nbytes(self) -> int:
        return self.weight.nbytes

    @staticmethod
    def missing() -> str:
        return "" if hasattr(torch, "_weight_int8pack_mm") else "has no _weight_int8pack_mm"


class DynamicEight(_EightBit):
    """int8 weights and activations rounded as they come: `quantized::linear_dynamic` of FBGEMM.

    Activations share one scale, so a model with large outliers suffers: perplexity rose by 2% on the quickstart model
    but by 129% on SmolLM2-135M-Instruct.
    """

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"  # decides the layout of what is packed now
        try:
            zeros = torch.zeros(len(scale), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch advises against such tensors; this one is dropped
                whole = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(whole, None)
        finally:
            torch.backends.quantized.engine = before
        self.size = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        # activations in 7 bits: sums of pairs would overflow 16 bits on processors without VNNI
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, True).to(x.dtype)

    def stored(self) -> Tensor:
        return torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()

    def nbytes(self) -> int:
        return self.size

    @staticmethod
    def missing() -> str:
        return "" if "fbgemm" in torch.backends.quantized.supported_engines else "was built without FBGEMM"


class PackedFour:
    """Weights of 4 bits in groups, bfloat16 activations: `torch.ops.aten._weight_int4pack_mm_for_cpu`.

    A weight is (q - 8) x scale + zero, with q of 0 to 15; two stand in a stored byte, the first in its low half.
    """

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        self.outputs, self.group_size = len(weight), group_size
        more = -self.outputs % _BLOCK  # vocabularies have any size: rows of nothing fill the last block
        levels = torch.stack([weight & 15, weight >> 4], -1).flatten(1).to(torch.int32)  # (O, I)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(functional.pad(levels, (0, 0, 0, more)), 1)
        self.scale = functional.pad(scale.to(torch.bfloat16), (0, 0, 0, more)).contiguous()  # (G, O, 2)

    def __call__(self, x: Tensor) -> Tensor:
        short = x.to(torch.bfloat16)
        full = torch.ops.aten._weight_int4pack_mm_for_cpu(short, self.packed, self.group_size, self.scale)
        return full[:, : self.outputs].to(x.dtype)

    def stored(self) -> Tensor:
        """Return the matrix as `quantize` made it: torch cannot unpack it, so the kernel is asked for each column."""
        inputs = len(self.scale) * self.group_size
        columns = torch.eye(inputs, dtype=torch.bfloat16)
        weight = self(columns).float().view(len(self.scale), self.group_size, self.outputs)
        scale, zero = self.scale[:, None, : self.outputs].float().unbind(-1)
        levels = ((weight - zero) / scale + 8).round_().clamp_(0, 15).view(inputs, -1).T.to(torch.uint8)
        return levels[:, ::2] | levels[:, 1::2] << 4

    def nbytes(self) -> int:
        return self.packed.nbytes

    @staticmethod
    def missing() -> str:
        found = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        return "" if found else "has no _weight_int4pack_mm_for_cpu"

    @staticmethod
    def fits(outputs: int, inputs: int, group_size: int) -> bool:
        return inputs % group_size == 0

    @staticmethod
    def empty(outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor]:
        weight = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
        return weight, torch.empty(inputs // group_size, outputs, 2, dtype=torch.bfloat16)

    @staticmethod
    def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        groups = weight.float().unflatten(1, (-1, group_size))  # (O, G, group)
        low, high = groups.aminmax(dim=2)  # to the ends: cutting outliers short cost twice as much
        zero = ((low + high) / 2 + (high - low) / 30).to(torch.bfloat16).float()  # level 8 stands half a step above
        # no finer than bfloat16 tells values around the zero apart, so that `stored` finds every level again
        step = torch.maximum((high - low) / 15, zero.abs() / 64).clamp(min=1e-8).to(torch.bfloat16).float()
        levels = ((groups - zero[..., None]) / step[..., None] + 8).round_().clamp_(0, 15).flatten(1).to(torch.uint8)
        scale = torch.stack([step, zero], -1).transpose(0, 1).to(torch.bfloat16).contiguous()
        return levels[:, ::2] | levels[:, 1::2] << 4, scale


KERNELS: dict[tuple[int, str], type[Kernel]] = {
    (8, "packed"): PackedEight,
    (8, "dynamic"): DynamicEight,
    (4, "packed"): PackedFour,
}
