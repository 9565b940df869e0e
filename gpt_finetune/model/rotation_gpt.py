"""How a CPU turns queries and keys: in half the passes over memory that the formula takes, rounded once."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

LARGE = 1 << 15  # numbers from which on it pays


class _Rotation(torch.autograd.Function):
    """Turn each pair (i, i + K/2) of coordinates: (B, H, T, K), angles (B or 1, 1, T, K) -> (B, H, T, K), in x's dtype.

    What comes out lies as x does: fused attention passes that on to its own result, which is then not copied.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Keep the angles only."""
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Turn back; heads come out side by side, as projections gave them."""
        cos, sin = ctx.saved_tensors
        turned = _turn(slope, cos, -sin).transpose(1, 2)  # (B, T, H, K)
        by_x = turned.to(slope.dtype, memory_format=torch.contiguous_format).contiguous()  # one pass, where any
        return by_x.transpose(1, 2), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide, half = x.float(), x.shape[-1] // 2
    turned = wide * cos
    turned[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return turned


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + K/2) of coordinates by its angle: (B, H, T, K) -> (B, H, T, K).

    In training on a CPU what is large comes by `_Rotation`: in float32 the same but for rounding, and rounded to x's
    precision, where the formula gives that of the angles.

    Args:
        x: Queries or keys.
        cos: Of the angles, (B or 1, 1, T, K), each half the same.
        sin: Likewise.
    """
    served = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() >= LARGE
    plain = all(type(given) is torch.Tensor for given in (x, cos, sin))
    if served and plain and x.requires_grad and not torch.compiler.is_compiling():
        return _Rotation.apply(x, cos, sin)
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin
