"""How a CPU differentiates a root-mean-square norm: torch's own takes a pass over float32 copies for each operation."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 18  # numbers from which on it pays: fewer stay in the cache from one of torch's passes to the next


class _RMSNorm(torch.autograd.Function):
    """torch's norm of the last dimension D, (..., D) -> (..., D), which keeps nothing but what it was given."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalise, to the last bit as torch does."""
        ctx.eps = eps
        ctx.save_for_backward(x, weight)
        return nn.functional.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Differentiate by x and weight, with torch's fused pass of LayerNorm, told that every mean is 0.

        That pass also takes the mean of slope x weight away, as befits a norm that subtracts one; it is given back.
        """
        x, weight = ctx.saved_tensors
        size = len(weight)
        rows, slopes = x.reshape(-1, size), slope.reshape(-1, size)  # (N, D)
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)  # (N, 1)
        scale = norms.square_().div_(size).add_(ctx.eps).rsqrt_()
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            derive, wanted = torch.ops.aten.native_layer_norm_backward, [True, False, False]
            by_x = derive(slopes, rows, [size], 0 * scale, scale, weight.float(), None, wanted)[0]
            taken = torch.mv(slopes, weight).float().div_(size).unsqueeze_(1).mul_(scale)
            by_x = by_x.add_(taken.to(by_x.dtype)).view(x.shape)
        if ctx.needs_input_grad[1]:
            by_weight = torch.mm(scale.to(x.dtype).T, slopes * rows).squeeze(0)
        return by_x, by_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, size: int, eps: float, training: bool) -> torch.Tensor:
    """Normalise the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467); sums are in float32.

    In training on a CPU gradients of what is large come by `_RMSNorm`: in float32 the same but for rounding, in
    bfloat16 with a relative error of 0.003 where torch's have 0.0017.

    Args:
        x: What to normalise, (..., D).
        weight: Of each coordinate, (D,), in x's precision; None is 1.
        size: D.
        eps: Added to the mean square.
        training: Whether gradients are to come.
    """
    plain = type(x) is torch.Tensor and (weight is None or type(weight) in (torch.Tensor, nn.Parameter))
    served = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() >= LARGE
    if not (training and plain and served) or torch.compiler.is_compiling():
        return nn.functional.rms_norm(x, (size,), weight, eps)
    return _RMSNorm.apply(x, x.new_ones(size) if weight is None else weight, eps)
