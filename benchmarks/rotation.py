"""Speed of training rotary positions on a CPU: ours against transformers', which pass over memory for each operation.

    PYTHONPATH=. python benchmarks/rotation.py [--rounds 3] [--size tiny]

Queries (B, T, H, K) as a projection gives them, with angles in float32, to what attention takes, and back: in bfloat16
products, heads one behind the other, in float32 a fused kernel. Ways take turns, each in a process forked for it that
keeps its memory as our recipes do: the median of some passes after a warm-up, and by how much the process grew at its
peak. Writes `benchmarks/results/rotation.json`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers.forking import compare, milliseconds
from peers.measuring import Figures
from transformers.models.llama.modeling_llama import rotate_half

from gpt_finetune.allocation import keep_memory
from gpt_finetune.model.rotation_gpt import turn

PASSES = 9
# name -> shapes (B, T, H, K): the quickstart's, 4,096 tokens of 6 x 384, of 9 x 64 (SmolLM2), 2,048 of Gemma 3 270M
SIZES = {
    "models": ((16, 128, 4, 48), (16, 256, 6, 64), (8, 512, 9, 64), (8, 256, 4, 256)),
    "tiny": ((1, 8, 2, 4),),
}


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "ours": turn,
    "formula": lambda x, cos, sin: x * cos + rotate_half(x) * sin,
}


def one(way: str, shape: tuple[int, ...], precision: str) -> Figures:
    """Measure one way in this process."""
    keep_memory()
    projected = torch.randn(shape, dtype=getattr(torch, precision), requires_grad=True)
    angles = torch.rand(1, 1, shape[1], shape[3] // 2).repeat(1, 1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    slope = torch.randn(shape, dtype=projected.dtype).transpose(1, 2)
    by_products = precision == "bfloat16"
    slope = slope.contiguous() if by_products else slope

    def learn() -> None:
        projected.grad = None  # adding up would count as the rotation's
        turned = WAYS[way](projected.transpose(1, 2), cos, sin)
        (turned.to(projected.dtype).contiguous() if by_products else turned).backward(slope)

    return milliseconds(learn, PASSES)


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    compare("rotation", "Speed of rotary positions, ours and the formula's.", one, WAYS, SIZES)


if __name__ == "__main__":
    main()
