"""Speed and memory of attention with sinks: ours on sdpa against transformers' gpt-oss, which is eager.

    PYTHONPATH=. python benchmarks/sinks.py

Forward and backward of the attention function at gpt-oss-20b's shapes (64 query and 8 key-value heads of 64, float32,
one row of 1024 tokens), full and with its window of 128, each side with the mask that its model would pass. Sides take
turns, each measurement in a fresh process: the median of some passes after a warm-up, and by how much the process grew
at its peak. Outputs and gradients are compared. Writes `benchmarks/results/sinks.json`.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gpt_finetune.model.backends_gpt import WITH_SINKS

TOKENS, HEADS, KEY_HEADS, HEAD_DIM, WINDOW = 1024, 64, 8, 64, 128
ROUNDS, PASSES = 5, 5
SIDES, KINDS = ("ours", "transformers"), ("full", "sliding")


def inputs() -> list[torch.Tensor]:
    """Return query, key, value and sinks, which all want gradients."""
    torch.manual_seed(0)
    shapes = [(1, heads, TOKENS, HEAD_DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(*shape, requires_grad=True) for shape in (*shapes, (HEADS,))]


def attention(side: str, kind: str) -> Callable[..., torch.Tensor]:
    """Return one side's attention: query, key, value, sinks -> (1, T, H, K)."""
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    seen = ((distance >= 0) & (distance < (WINDOW if kind == "sliding" else TOKENS)))[None, None]
    fields = {"num_key_value_groups": HEADS // KEY_HEADS, "is_causal": True, "training": True}
    if side == "ours":
        # the kernel knows causality; `None` is what transformers' mask functions give then
        options = {"attention_mask": seen, "sliding_window": WINDOW} if kind == "sliding" else {"attention_mask": None}
        layer, ours = SimpleNamespace(**fields), WITH_SINKS[sdpa_attention_forward]
        return lambda q, k, v, sinks: ours(layer, q, k, v, **options, scaling=HEAD_DIM**-0.5, s_aux=sinks)[0]
    added = torch.zeros(1, 1, TOKENS, TOKENS).masked_fill(~seen, torch.finfo(torch.float32).min)

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        layer = SimpleNamespace(**fields, sinks=sinks)
        return eager_attention_forward(layer, q, k, v, added, scaling=HEAD_DIM**-0.5)[0]

    return eager


def one(side: str, kind: str) -> dict[str, float]:
    """Measure one side in this process."""
    attend, tensors = attention(side, kind), inputs()
    seconds = []
    before = psutil.Process().memory_info().rss
    for _ in range(1 + PASSES):
        start = time.perf_counter()
        attend(*tensors).square().sum().backward()
        seconds.append(time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"milliseconds": statistics.median(seconds[1:]) * 1e3, "peak_mb": grown / 2**20}


def difference(kind: str) -> float:
    """Return the largest difference between the two sides' outputs and gradients, relative to the largest value."""
    results = []
    for side in SIDES:
        tensors = inputs()
        out = attention(side, kind)(*tensors)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in tensors)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    report: dict[str, Any] = {
        "shape": f"T {TOKENS}, {HEADS} query heads, {KEY_HEADS} key-value heads of {HEAD_DIM}, float32",
        "rounds": ROUNDS,
        "passes": PASSES,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    for kind in KINDS:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                run = subprocess.run([sys.executable, __file__, side, kind], capture_output=True, text=True, check=True)
                rounds[side].append(json.loads(run.stdout))
        medians = {
            side: {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
            for side, rows in rounds.items()
        }
        ours, theirs = (medians[side] for side in SIDES)
        report[kind] = {
            **medians,
            "times_faster": round(theirs["milliseconds"] / ours["milliseconds"], 2),
            "share_of_memory": round(ours["peak_mb"] / theirs["peak_mb"], 3),
        }
    for kind in KINDS:  # last: a process counts its parent's size at the start as a peak of its own
        report[kind] |= {"largest_relative_difference": difference(kind)}
    file = Path(__file__).parent / "results" / "sinks.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(one(*sys.argv[1:])))
    else:
        main()
