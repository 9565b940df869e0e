"""Speed of training attention with dropout on a CPU: ours against torch's, whose fused kernel has none there.

    PYTHONPATH=. python benchmarks/dropout.py [--rounds 3] [--size tiny]

Forward and backward of the attention function, causal, of heads as wide as GPT-2's: with dropout of 0.1 by each, and
without by torch. Ways take turns, each in a process forked for it that keeps its memory as our recipes do: the median
of some passes after a warm-up, and by how much the process grew at its peak. Writes `benchmarks/results/dropout.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from peers.forking import forked, milliseconds
from peers.measuring import Figures, arguments, in_turns, machine, medians, write
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gpt_finetune.allocation import keep_memory
from gpt_finetune.model.backends_gpt import BETTER

PASSES, HEADS, WIDTH, DROPOUT = 5, 12, 64, 0.1
# name -> rows and tokens of each
SIZES = {"124M": ((3, 256), (4, 512), (2, 1024)), "tiny": ((2, 16),)}
# name -> attention function, dropout
WAYS: dict[str, tuple[Callable[..., tuple[torch.Tensor, None]], float]] = {
    "ours": (BETTER[sdpa_attention_forward], DROPOUT),
    "torch": (sdpa_attention_forward, DROPOUT),
    "torch, without dropout": (sdpa_attention_forward, 0.0),
}


def one(way: str, rows: int, tokens: int, precision: str) -> Figures:
    """Measure one way in this process."""
    keep_memory()
    attend, dropout = WAYS[way]
    layer = SimpleNamespace(by_products=True, is_causal=True, num_key_value_groups=1, training=True)
    made = [torch.randn(rows, HEADS, tokens, WIDTH, dtype=getattr(torch, precision)) for _ in range(4)]
    inputs, slope = [x.requires_grad_() for x in made[:3]], made[3].transpose(1, 2).contiguous()

    def learn() -> None:
        attend(layer, *inputs, None, scaling=WIDTH**-0.5, dropout=dropout)[0].backward(slope)

    return milliseconds(learn, PASSES)


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    parser = arguments("Speed of attention with dropout, ours and torch's.", rounds=3)
    parser.add_argument("--size", choices=SIZES, default="124M")
    given = parser.parse_args()
    report: Figures = {"shape": f"{HEADS} heads of {WIDTH}, causal", **machine(), "rounds": given.rounds}
    for precision in ("bfloat16", "float32"):
        for rows, tokens in SIZES[given.size]:
            acts = {way: partial(forked, partial(one, way, rows, tokens, precision)) for way in WAYS}
            found = {way: medians(runs, 1) for way, runs in in_turns(acts, given.rounds).items()}
            times = found["torch"]["milliseconds"] / found["ours"]["milliseconds"]
            report[f"{precision}, {rows} x {tokens} tokens"] = {**found, "times_faster": round(times, 2)}
    write("dropout", report, given.results)


if __name__ == "__main__":
    main()
