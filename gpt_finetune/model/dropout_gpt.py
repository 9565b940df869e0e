"""Dropout (Srivastava et al. 2014, JMLR 15:1929-1958), which a CPU draws four numbers at once for."""

import torch
from torch import nn

LEVELS = 1 << 16  # numbers of 16 bits, four of which stand in one that torch draws


def level(p: float) -> int:
    """Return below which of `LEVELS` numbers something is dropped; 0, or all of them, where that cannot tell p."""
    return round(p * LEVELS)


def draws_fast(x: torch.Tensor, p: float) -> bool:
    """Tell whether `draw_kept` serves: on a CPU, where torch draws a number of 64 bits for each value, one by one."""
    plain = type(x) is torch.Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return plain and 0 < level(p) < LEVELS


def draw_kept(shape: torch.Size, p: float) -> torch.Tensor:
    """Return 1 for values that stay, and 0 for the share p of them, to the nearest 1/65,536, that is dropped.

    They are bytes, by which torch multiplies several times as fast as by booleans.
    """
    count = shape.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)  # None: all 64 bits
    return drawn.view(torch.int16)[:count].ge_(level(p) - LEVELS // 2).to(torch.uint8).view(shape)


def growth(p: float) -> float:
    """Return by how much what stays must grow so that the mean stays."""
    return LEVELS / (LEVELS - level(p))


class GPTDropout(nn.Dropout):
    """`nn.Dropout`, but that a CPU draws other numbers, sooner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop values in training, each by itself."""
        if not self.training or not self.p:
            return x
        if not draws_fast(x, self.p):
            return super().forward(x)
        return (x * draw_kept(x.shape, self.p)).mul_(growth(self.p))
