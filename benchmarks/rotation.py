"""Speed of training rotary positions on a CPU: ours against the formula, which passes over memory for each operation.

    PYTHONPATH=. python benchmarks/rotation.py [--rounds 3] [--size tiny]

Queries (B, T, H, K) as a projection gives them, with angles in float32, to what attention takes, and back: in bfloat16
products, heads one behind the other, in float32 a fused kernel. Ways take turns, each in a process forked for it that
keeps its memory as our recipes do: the median of some passes after a warm-up, and by how much the process grew at its
peak. Writes `benchmarks/results/rotation.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peers.forking import forked, milliseconds
from peers.measuring import Figures, arguments, in_turns, machine, medians, write

from gpt_finetune.allocation import keep_memory
from gpt_finetune.model.rotation_gpt import turn

PASSES = 9
# name -> shapes (B, T, H, K): the quickstart's, 4,096 tokens of 6 x 384, of 9 x 64 (SmolLM2), 2,048 of Gemma 3 270M
SIZES = {
    "models": ((16, 128, 4, 48), (16, 256, 6, 64), (8, 512, 9, 64), (8, 256, 4, 256)),
    "tiny": ((1, 8, 2, 4),),
}


def formula(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn as transformers' models do (Su et al. 2021, arXiv:2104.09864)."""
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


WAYS: dict[str, Callable[..., torch.Tensor]] = {"ours": turn, "formula": formula}


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
    parser = arguments("Speed of rotary positions, ours and the formula's.", rounds=3)
    parser.add_argument("--size", choices=SIZES, default="models")
    given = parser.parse_args()
    report: Figures = {**machine(), "rounds": given.rounds}
    for precision in ("bfloat16", "float32"):
        for shape in SIZES[given.size]:
            acts = {way: partial(forked, partial(one, way, shape, precision)) for way in WAYS}
            found = {way: medians(runs, 2) for way, runs in in_turns(acts, given.rounds).items()}
            times = found["formula"]["milliseconds"] / found["ours"]["milliseconds"]
            name = f"{precision}, {' x '.join(f'{size:,}' for size in shape)}"
            report[name] = {**found, "times_faster": round(times, 2)}
    write("rotation", report, given.results)


if __name__ == "__main__":
    main()
