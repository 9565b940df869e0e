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
_HALF = 63  # the largest whole number of a part of an activation: 1 to 127 of 7 bits around 64
_STEP = 2 * _HALF  # what rounding left is at most a half: the next part is so many times as fine
_TINY = 1e-30  # below it a row counts as nothing: 63 times its inverse would not be finite
_AT_ONCE = 256  # rows that are split together, so that what they take stays small beside the result


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


class SplitEight(_EightBit):
    """int8 weights and activations of three times 7 bits: FBGEMM's product, which reads the weights once for all three.

    A row of activations is its largest value times (h0 + h1 / 126 + h2 / 126^2) / 63, with each h rounded to whole
    numbers within 63 and the next one made of what rounding left: 1e-5 of the result is lost even where one activation
    is a hundred times the others (one rounding alone would lose 0.1), and no row sees another. Sums stay exact in 16
    bits, so processors without VNNI are right, too.
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
        self.size, self.finer = weight.nbytes, torch.tensor([1.0, _STEP]).view(2, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= _AT_ONCE:
            return self._multiply(x)
        return torch.cat([self._multiply(rows) for rows in x.split(_AT_ONCE)])

    def _multiply(self, x: Tensor) -> Tensor:
        rows = x.float()
        unit = rows.abs().amax(1, keepdim=True).clamp_(min=_TINY).div_(_HALF)
        whole = rows / unit  # (N, I), within 63
        left = whole * self.finer  # (2, N, I): in units of the first part, and of the second
        left = left.sub_(left.round()).mul_(_STEP)
        parts = torch.cat((whole, left.view(-1, x.shape[1])))  # (3 N, I)
        products = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(parts, 1.0, _HALF + 1, self.packed)
        first, second, third = products.view(3, len(x), -1).unbind()
        return first.add_(second, alpha=1 / _STEP).add_(third, alpha=_STEP**-2).mul_(unit).to(x.dtype)

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
    (8, "split"): SplitEight,
    (4, "packed"): PackedFour,
}
# Bits -> backends, the fastest first; all of them keep the quality.
BEST: dict[int, tuple[str, ...]] = {8: ("split", "packed"), 4: ("packed",)}


def choose(bits: int, backend: str) -> type[Kernel]:
    """Return the kernel of so many bits: of a backend, or under `auto` the fastest that this machine's torch has."""
    if backend != "auto" and (bits, backend) in KERNELS:
        return KERNELS[bits, backend]
    able = [KERNELS[bits, name] for name in BEST[bits]]
    return next((kernel for kernel in able if not kernel.missing()), able[-1])
