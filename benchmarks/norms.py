"""Speed of training root-mean-square norms on a CPU: ours against torch's, which takes its operations one by one.

    PYTHONPATH=. python benchmarks/norms.py [--rounds 3] [--size tiny]

Forward and backward of the norm with its weights. Ways take turns, each in a process forked for it that keeps its
memory as our recipes do: the median of some passes after a warm-up, and by how much the process grew at its peak.
Writes `benchmarks/results/norms.json`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers.forking import compare, milliseconds
from peers.measuring import Figures
from torch import nn

from gpt_finetune.allocation import keep_memory
from gpt_finetune.model.norms_gpt import rms_norm

PASSES, EPS = 9, 1e-6
# name -> shapes: 4,096 tokens of 6 x 384 and of their heads, 2,048 of 124M, 4,096 of Gemma 3 270M and of its heads
SIZES = {
    "models": ((4096, 384), (4096, 6, 64), (2048, 768), (4096, 640), (4096, 4, 256)),
    "tiny": ((8, 16),),
}
WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ours": lambda x, weight: rms_norm(x, weight, len(weight), EPS, training=True),
    "torch": lambda x, weight: nn.functional.rms_norm(x, weight.shape, weight, EPS),
}


def one(way: str, shape: tuple[int, ...], precision: str) -> Figures:
    """Measure one way in this process."""
    keep_memory()
    x, slope, weight = (torch.randn(size, dtype=getattr(torch, precision)) for size in (shape, shape, shape[-1:]))
    x.requires_grad_()
    weight.requires_grad_()

    def learn() -> None:
        x.grad = weight.grad = None  # adding up would count as the norm's
        WAYS[way](x, weight).backward(slope)

    return milliseconds(learn, PASSES)


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    compare("norms", "Speed of root-mean-square norms, ours and torch's.", one, WAYS, SIZES)


if __name__ == "__main__":
    main()
