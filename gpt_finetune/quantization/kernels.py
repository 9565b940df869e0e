"""Quantised matrices and torch's products with them, one class a kernel.

Shapes: N rows of activations, O outputs, I inputs, G groups of inputs.
"""
# ruff: noqa: D102 - `Product` and `Kernel` say of each method what it does

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gpt_finetune.quantization.opaque import Opaque

GROUPS = (32, 64, 128)  # what torch's 4-bit kernel takes, 256 left out: too coarse
_ALIGNED = 64  # bytes of the widest vector
_BLOCK = 64  # outputs that the 4-bit kernel takes at once, on the widest processor
# Rows from which 8-bit weights are spelt out as floats first: that costs about what 30 rows cost in the kernel.
_MANY = 32
_MANY_FOR_FOUR = 96  # the same for 4 bits, which take twice as long to spell out
_FEW = 9  # and those from which a product of bytes takes less time than the kernel
# Activations of so many bytes, moved above 0 so that each byte is one above 128: numbers that stand in the middle
_MIDDLES = {2: 0x8080, 3: 0x808080}
_HALVES = {count: torch.tensor(middle + 0.5, device="cpu") for count, middle in _MIDDLES.items()}
_TINY = 1e-30  # below it a row counts as nothing: 127 times its inverse would not be finite
_AT_ONCE = 256  # rows, see `_some_at_once`


class Product(Protocol):
    """What a layer multiplies by."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply and add the bias: (N, I) -> (N, O), in the dtype of `x`."""

    def stored(self) -> Tensor:
        """Return the matrix as `quantize` made it."""

    def nbytes(self) -> int:
        """Return what it takes in memory, in bytes, its scale left out."""


class Kernel(Product, Protocol):
    """One matrix, quantised and laid out for its product."""

    scale_dim: int  # along which scales of several matrices stand side by side

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        """Take the matrix as it is stored."""

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
    """What all 8-bit kernels share: how the matrix is made and stored."""

    scale_dim = 0

    @staticmethod
    def fits(outputs: int, inputs: int, group_size: int) -> bool:
        return inputs % 16 == 0  # what the kernels take in one vector

    @staticmethod
    def empty(outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor]:
        return torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)

    @staticmethod
    def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        return quantize_rows(weight)


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def _some_at_once(multiply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Multiply rows that are split into parts, so many at once that the parts stay small beside the result."""
    if len(x) <= _AT_ONCE:
        return multiply(x)
    return torch.cat([multiply(rows) for rows in x.split(_AT_ONCE)])


class DotEight(_EightBit, Opaque):
    """Activations as whole numbers of two or three bytes, which one product of bytes takes together.

    A row of activations is its largest value times whole numbers within 127 x 256, of bfloat16, which has lost 2e-3 of
    each value already, or 127 x 256 x 256, of others: at most 1.6e-5 or 6e-8 of the largest value is lost. No row sees
    another.
    """

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        super().__init__(len(weight))
        # torch 2.13 reads the weights by instructions that fault between boundaries, where those of a file may stand
        self.weight = weight if weight.data_ptr() % _ALIGNED == 0 else weight.clone()
        self.scale = scale

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _add(self.product(x), bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return _some_at_once(self.by_bytes, x)

    def by_bytes(self, x: Tensor) -> Tensor:
        """Multiply a few hundred rows: (N, I) -> (N, O)."""
        rows, count = len(x), 2 if x.dtype == torch.bfloat16 else 3
        most, middle = 127 << 8 * (count - 1), _MIDDLES[count]
        unit = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True, dtype=torch.float32)
        # above 0, where cutting off is rounding; of a row of zeros, whatever NaN becomes: below it is taken 0 times
        whole = torch.addcmul(_HALVES[count], x, most / unit).to(torch.int32)
        signed = whole.bitwise_xor_(middle).view(torch.int8).view(*x.shape, 4)  # the lowest byte first
        parts = signed[..., :count].permute(2, 0, 1).reshape(count * rows, -1)
        *finer, y = torch._int_mm(parts, self.weight.T).to(torch.float32).split(rows)
        for part in reversed(finer):
            y = torch.add(part, y, alpha=256)
        return y.mul_(self.scale).mul_(unit * (1 / most)).to(x.dtype)

    def stored(self) -> Tensor:
        return self.weight

    def nbytes(self) -> int:
        return self.weight.nbytes

    @staticmethod
    def missing() -> str:
        # without them `_int_mm` is a plain loop
        return "" if torch.cpu._is_vnni_supported() else "finds no VNNI instructions"


class PackedEight(DotEight):
    """int8 weights, bfloat16 activations: `torch._weight_int8pack_mm`, which is slow for other dtypes.

    It takes 16 rows in four times the time of one, so where the processor can, some rows are multiplied by bytes.
    """

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        super().__init__(weight, scale, group_size)
        self.short_scale = scale.to(torch.bfloat16)
        self.few = _MANY if DotEight.missing() else _FEW

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) >= _MANY:
            return functional.linear(x, self.weight.to(x.dtype)).mul_(self.scale.to(x.dtype))
        if len(x) >= self.few:
            return self.by_bytes(x)
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.short_scale).to(x.dtype)

    @staticmethod
    def missing() -> str:
        return "" if hasattr(torch, "_weight_int8pack_mm") else "has no _weight_int8pack_mm"


class SplitEight(_EightBit, Opaque):
    """Activations of two or three times 7 bits: FBGEMM's product, on any processor.

    A row of activations is its largest value times (h0 + h1 / 2w + h2 / 4w^2) / w, with each h rounded to whole numbers
    within w = 63 and the next one made of what rounding left; no row sees another. Activations in bfloat16 take two
    parts, of which 6e-5 of a row's largest value is lost at most; others three, and 1e-5 of the result even where one
    activation is a hundred times the rest (one rounding alone would lose 0.1). Sums stay exact in 16 bits, so
    processors without VNNI are right, too.
    """

    whole = 63  # w: 1 to 127 of 7 bits around 64

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        super().__init__(len(weight))
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

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _some_at_once(partial(self._in_parts, bias=bias), x)

    def _in_parts(self, x: Tensor, bias: Tensor | None) -> Tensor:
        unit = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True, dtype=torch.float32)
        unit = unit.clamp_(min=_TINY).mul_(1 / self.whole)
        left, parts = x / unit, []  # (N, I), within w
        for _ in range(1 if x.dtype == torch.bfloat16 else 2):
            parts.append(left.round())
            left = (left - parts[-1]).mul_(2 * self.whole)  # what rounding left is at most a half
        products = self.product(torch.cat((*parts, left))).split(len(x))
        y = products[-1]
        for coarser in products[-2::-1]:
            y = torch.add(coarser, y, alpha=0.5 / self.whole)
        y = y.mul_(unit)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        middle, packed = self.whole + 1, self.packed
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, middle, packed)

    def stored(self) -> Tensor:
        return torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()

    def nbytes(self) -> int:
        return self.size

    @staticmethod
    def missing() -> str:
        return "" if "fbgemm" in torch.backends.quantized.supported_engines else "was built without FBGEMM"


@cache
def _is_in_halves() -> bool:
    """Tell whether this machine's torch packs 64 outputs as it does for AVX-512.

    For each input in turn, the levels of 32 of them stand in low halves of bytes and those of the next 32 in high ones.
    """
    levels = torch.arange(2 * _BLOCK * GROUPS[0]).mul_(7).view(2, _BLOCK, GROUPS[0]) // 3 % 16
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.view(-1, GROUPS[0]).to(torch.int32), 1)
    low, high = levels.mT.split(_BLOCK // 2, dim=-1)  # (2, inputs, 32)
    return torch.equal(packed.view(2, GROUPS[0], -1), (low | high << 4).to(torch.uint8))


class PackedFour(Opaque):
    """Weights of 4 bits in groups, bfloat16 activations: `torch.ops.aten._weight_int4pack_mm_for_cpu`.

    A weight is (q - 8) x scale + zero, with q of 0 to 15; two stand in a stored byte, the first in its low half.

    Many rows, as of a prompt, take the weights spelt out in bfloat16: the kernel would spell them out for each few.
    """

    scale_dim = 1

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        super().__init__(len(weight))
        self.group_size = group_size
        more = -self.outputs % _BLOCK  # vocabularies have any size: rows of nothing fill the last block
        levels = torch.stack([weight & 15, weight >> 4], -1).flatten(1).to(torch.int32)  # (O, I)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(functional.pad(levels, (0, 0, 0, more)), 1)
        self.scale = functional.pad(scale.to(torch.bfloat16), (0, 0, 0, more)).contiguous()  # (G, O, 2)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _add(self.product(x), bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        short = x.to(torch.bfloat16)
        if len(x) >= _MANY_FOR_FOUR and _is_in_halves():
            return (short @ self.spelt_out())[:, : self.outputs].to(x.dtype)
        full = torch.ops.aten._weight_int4pack_mm_for_cpu(short, self.packed, self.group_size, self.scale)
        return full[:, : self.outputs].to(x.dtype)

    def spelt_out(self) -> Tensor:
        """Return the weights in bfloat16, (I, O and what fills the last block), in the order that `_is_in_halves`."""
        groups, outputs, _ = self.scale.shape
        packed = self.packed.view(outputs // _BLOCK, groups, self.group_size, _BLOCK // 2)
        levels = torch.empty(*packed.shape[:-1], _BLOCK, dtype=torch.bfloat16)
        levels[..., : _BLOCK // 2].copy_(packed & 15)
        levels[..., _BLOCK // 2 :].copy_(packed >> 4)
        by_block = self.scale.view(groups, -1, _BLOCK, 2).permute(3, 1, 0, 2).unsqueeze(-2).contiguous()
        scale, zero = by_block.unbind()  # (O / block, G, 1, block)
        weight = torch.empty(groups * self.group_size, outputs, dtype=torch.bfloat16)
        target = weight.view(groups, self.group_size, -1, _BLOCK).permute(2, 0, 1, 3)
        torch.add(levels.sub_(8).mul_(scale), zero, out=target)
        return weight

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


class PackedSixteen(Opaque):
    """Weights of bfloat16 in oneDNN's own layout, bfloat16 activations: what a plain layer rearranges at each call."""

    scale_dim = 0

    def __init__(self, weight: Tensor, scale: Tensor, group_size: int) -> None:
        super().__init__(len(weight))
        self.packed, self.size = torch.ops.mkldnn._reorder_linear_weight(weight), weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.product(x, bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        short = None if bias is None else bias.to(torch.bfloat16)
        y = torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.packed, short, "none", [], "")
        return y.to(x.dtype)

    def stored(self) -> Tensor:
        return self.packed.to_dense()

    def nbytes(self) -> int:
        return self.size

    @staticmethod
    def missing() -> str:
        if not torch.backends.mkldnn.is_available():
            return "was built without oneDNN"
        return "" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "finds no instructions for bfloat16"

    @staticmethod
    def fits(outputs: int, inputs: int, group_size: int) -> bool:
        return True

    @staticmethod
    def empty(outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor]:
        return torch.empty(outputs, inputs, dtype=torch.bfloat16), torch.empty(0)

    @staticmethod
    def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        return weight.to(torch.bfloat16, copy=True).contiguous(), torch.empty(0)


KERNELS: dict[tuple[int, str], type[Kernel]] = {
    (16, "packed"): PackedSixteen,
    (8, "dot"): DotEight,
    (8, "packed"): PackedEight,
    (8, "split"): SplitEight,
    (4, "packed"): PackedFour,
}
# Bits -> backends, the fastest for a few rows and for prompts first; all of them keep the quality.
BEST: dict[int, tuple[str, ...]] = {16: ("packed",), 8: ("packed", "dot", "split"), 4: ("packed",)}


def choose(bits: int, backend: str) -> type[Kernel]:
    """Return the kernel of so many bits: of a backend, or under `auto` the fastest that this machine's torch has."""
    if backend != "auto" and (bits, backend) in KERNELS:
        return KERNELS[bits, backend]
    able = [KERNELS[bits, name] for name in BEST[bits]]
    return next((kernel for kernel in able if not kernel.missing()), able[-1])
