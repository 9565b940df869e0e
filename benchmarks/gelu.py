"""Speed of training GELU by tanh on a CPU: ours, by oneDNN's tanh, against torch's.

    PYTHONPATH=. python benchmarks/gelu.py [--rounds 3] [--size tiny]

Forward and backward; the forward pass by itself is what is computed again in training, and what evaluation takes. Ways
take turns, each in a process forked for it that keeps its memory as our recipes do: medians of some passes after a
warm-up. Without AVX-512 ours is torch's. Writes `benchmarks/results/gelu.json`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers.forking import compare, milliseconds
from peers.measuring import Figures
from torch import nn

from gpt_finetune.allocation import keep_memory
from gpt_finetune.model.gelu_gpt import TanhGELU

PASSES = 9
# name -> shapes: 4,096 tokens of 6 x 384, 2,048 of 124M and of Gemma 3 270M
SIZES = {"models": ((4096, 1536), (2048, 3072), (2048, 2048)), "tiny": ((8, 16),)}
WAYS: dict[str, Callable[[], nn.Module]] = {"ours": TanhGELU, "torch": lambda: nn.GELU(approximate="tanh")}


def one(way: str, shape: tuple[int, ...], precision: str) -> Figures:
    """Measure one way in this process."""
    keep_memory()
    x, slope = (torch.randn(shape, dtype=getattr(torch, precision)) for _ in range(2))
    act, given = WAYS[way](), x.clone().requires_grad_()

    def learn() -> None:
        given.grad = None  # adding up would count as GELU's
        act(given).backward(slope)

    forward = milliseconds(lambda: act(x), PASSES)["milliseconds"]
    return {"forward_ms": forward, **milliseconds(learn, PASSES)}


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    compare("gelu", "Speed of GELU by tanh, ours and torch's.", one, WAYS, SIZES)


if __name__ == "__main__":
    main()
