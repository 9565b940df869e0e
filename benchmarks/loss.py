"""The loss over a large vocabulary: in pieces against whole logits, against torch's own fused one, against the ceiling.

    PYTHONPATH=. python benchmarks/loss.py
    PYTHONPATH=. python benchmarks/loss.py --shapes "6 x 384" --rounds 1 --precision bfloat16

Loss and gradients of a head without a bias. Ways take turns, each measurement in a fresh process: the best of some
passes, and by how much it raised the peak of resident memory. The ceiling is the three matrix products by themselves.
Writes `benchmarks/results/loss.json`, or `loss-bfloat16.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peers.measuring import Figures, arguments, fresh, in_turns, machine, medians, peak_mb, write
from torch import nn

from gpt_finetune.model.loss_gpt import chunked_loss

SHAPES = {
    "6 x 384": (4096, 384, 50304),
    "GPT-2": (2048, 768, 50257),
    "152 k": (1024, 384, 151936),
    "tiny": (64, 16, 512),
}
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
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    matrix = head.weight.detach().to(dtype)
    for rows in hidden.detach().to(dtype).split(1024):
        logits = rows @ matrix.t()
        torch.mm(logits, matrix)
        torch.mm(logits.t(), rows)
    return (hidden.sum() + head.weight.sum()) * 0


WAYS: dict[str, Callable[..., torch.Tensor]] = {"whole": whole, "pieces": in_pieces, "products": products}
if hasattr(nn.functional, "linear_cross_entropy"):
    WAYS["torch's linear_cross_entropy"] = fused


def one(way: str, shape: str, precision: str) -> Figures:
    """Measure one way in this process."""
    torch.manual_seed(0)
    tokens, width, vocabulary = SHAPES[shape]
    head = nn.Linear(width, vocabulary, bias=False)
    hidden, labels = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens,))
    before, seconds, loss = peak_mb(), [], 0.0
    for _ in range(PASSES):
        head.weight.grad = hidden.grad = None
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            result = WAYS[way](head, hidden, labels)
        result.backward()
        seconds.append(time.perf_counter() - start)
        loss = result.item()
    return {"seconds": min(seconds), "mb": peak_mb() - before, "loss": loss}


def main() -> None:
    """Measure in turns, print and write down."""
    parser = arguments("The loss over a large vocabulary.", ROUNDS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:3], help="tokens, width, ids")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--one", metavar="WAY", choices=WAYS, help="measure one way in this process, and print it")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.shapes[0], given.precision)))
        return
    report: dict[str, Any] = {**machine(given.precision), "rounds": given.rounds}
    for shape in given.shapes:
        words = ["--shapes", shape, "--precision", given.precision]
        measured = in_turns({way: _turn([*words, "--one", way]) for way in WAYS}, given.rounds)
        told = {way: medians(rows) for way, rows in measured.items()}
        for found in told.values():
            found |= {name: round(found[key] / max(told["whole"][key], 1e-9), 3) for key, name in RATIOS.items()}
        tokens, width, vocabulary = SHAPES[shape]
        report[f"{shape}: {tokens} tokens, width {width}, vocabulary {vocabulary}"] = told
    write("loss" if given.precision == "float32" else f"loss-{given.precision}", report, given.results)


def _turn(words: list[str]) -> Callable[[], Figures]:
    return lambda: fresh([sys.executable, __file__, *words])


if __name__ == "__main__":
    main()
