"""The loss over a large vocabulary: in pieces against whole logits, against torch's own fused one, against the ceiling.

    PYTHONPATH=. python benchmarks/loss.py

Loss and gradients of a head without a bias, float32. Ways take turns, each measurement in a fresh process: the best of
some passes, and by how much it raised the peak of resident memory. The ceiling is the three matrix products by
themselves. Writes `benchmarks/results/loss.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt_finetune.model.loss_gpt import chunked_loss
from gpt_finetune.training.throughput import peak_memory_mb

SHAPES = {"6 x 384": (4096, 384, 50304), "GPT-2": (2048, 768, 50257), "152 k": (1024, 384, 151936)}
PASSES, ROUNDS = 3, 3
RATIOS = {"seconds": "time_of_whole", "mb": "memory_of_whole"}


def in_pieces(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute ours; the labels are shifted already."""
    return chunked_loss(head, hidden[None], labels[None], len(head.weight), shift_labels=labels[None])


def whole(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute what transformers does."""
    return nn.functional.cross_entropy(head(hidden).float(), labels)


def fused(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute torch's own."""
    return nn.functional.linear_cross_entropy(hidden, head.weight, labels)


def products(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the matrix products and nothing else, in pieces that fit: there is no loss to be had faster."""
    for rows in hidden.detach().split(1024):
        logits = rows @ head.weight.detach().t()
        torch.mm(logits, head.weight.detach())
        torch.mm(logits.t(), rows)
    return (hidden.sum() + head.weight.sum()) * 0


WAYS: dict[str, Callable[..., torch.Tensor]] = {"whole": whole, "pieces": in_pieces, "products": products}
if hasattr(nn.functional, "linear_cross_entropy"):
    WAYS["torch's linear_cross_entropy"] = fused


def one(way: str, shape: str) -> dict[str, float]:
    """Measure one way in this process."""
    torch.manual_seed(0)
    tokens, width, vocabulary = SHAPES[shape]
    head = nn.Linear(width, vocabulary, bias=False)
    hidden, labels = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens,))
    before, seconds, loss = peak_memory_mb(), [], 0.0
    for _ in range(PASSES):
        head.weight.grad = hidden.grad = None
        start = time.perf_counter()
        result = WAYS[way](head, hidden, labels)
        result.backward()
        seconds.append(time.perf_counter() - start)
        loss = result.item()
    return {"seconds": min(seconds), "mb": peak_memory_mb() - before, "loss": loss}


def main() -> None:
    """Measure in turns, print and write down."""
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32",
        "rounds": ROUNDS,
    }
    for shape, (tokens, width, vocabulary) in SHAPES.items():
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                command = [sys.executable, __file__, way, shape]
                runs[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        told = {
            way: {key: round(statistics.median(run[key] for run in rows), 4) for key in rows[0]}
            for way, rows in runs.items()
        }
        for found in told.values():
            found |= {name: round(found[key] / told["whole"][key], 3) for key, name in RATIOS.items()}
        report[shape] = {"tokens": tokens, "width": width, "vocabulary": vocabulary, "ways": told}
        print(shape, json.dumps(told, indent=2))
    file = Path(__file__).parent / "results" / "loss.json"
    file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(one(*sys.argv[1:])))
    else:
        main()
