"""What a training step costs as a GPT grows: time and memory against length, width, depth, vocabulary and batch.

    PYTHONPATH=. python benchmarks/scaling.py                 # every axis, about 6 minutes
    PYTHONPATH=. python benchmarks/scaling.py --axes length "length, sliding" --rounds 3

Each point is a step (forward, backward, fused AdamW) of our GPT in float32, in a process forked for it alone: the
median over some steps after a warm-up, and by how much the process grew at its peak. One axis grows while all else
stays. A power law is fitted to the larger half of each axis, where fixed costs count least, and to what theory says of
the same points: FLOPs and bytes as `gpt_finetune/costs.py` counts them. Nothing grows faster than it must where the
measured exponent is not above the theory's. Linux only (memory). Writes `benchmarks/results/scaling.json`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peers.measuring import Figures, arguments, machine, medians, peak_mb, write

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.costs import estimate

SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8192}
TOKENS, BATCH, STEPS = 256, 4, 3
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        values: Its values, from small to large.
        fields: Names of `GPTConfig` that take the value, with what divides it.
        shape: Further fields of `GPTConfig`.
        tokens: Of a row; None means the value.
        batch: Rows; None means the value.
        note: What it shows.
    """

    values: tuple[int, ...]
    fields: dict[str, int] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = TOKENS
    batch: int | None = BATCH
    note: str = ""


_SLIDING = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 256, "position_embedding_type": "rotary"}
AXES: dict[str, Axis] = {
    "length": Axis(LENGTHS, tokens=None, batch=1, note="attention's time is quadratic, its memory linear"),
    "length, sliding": Axis(LENGTHS, shape=_SLIDING, tokens=None, batch=1, note="windows of 256: all linear"),
    "width": Axis((64, 128, 256, 512, 1024), {"hidden_size": 1, "num_attention_heads": 64}),
    "depth": Axis((1, 2, 4, 8, 16, 32), {"num_hidden_layers": 1}),
    "vocabulary": Axis((8192, 16384, 32768, 65536, 151936), {"vocab_size": 1}, note="logits are never whole"),
    "batch": Axis((1, 2, 4, 8, 16, 32), batch=None),
}


def point(axis: Axis, value: int) -> tuple[Any, int, int]:
    """Return the configuration, tokens of a row and rows of one point."""
    tokens, batch = axis.tokens or value, axis.batch or value
    grown = {name: max(1, value // part) for name, part in axis.fields.items()}
    fields = {**SHAPE, **axis.shape, **grown, "max_position_embeddings": tokens}
    plain = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return preset("gpt2", **{**plain, **ids, **fields}), tokens, batch


def theory(axis: Axis, value: int) -> Figures:
    """Return the FLOPs and bytes of a step, as our costs count them."""
    config, tokens, batch = point(axis, value)
    costs = estimate(config, tokens, batch, dtype="float32")
    return {"flops": costs.training_flops * tokens * batch, "bytes": sum(costs.training.values())}


def measure(axis: Axis, value: int) -> Figures:
    """Measure one point in this process."""
    config, tokens, batch = point(axis, value)
    torch.manual_seed(0)
    model = GPTForCausalLM._from_config(config, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    rows = torch.randint(config.vocab_size, (batch, tokens))
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:])}


def forked(axis: Axis, value: int) -> Figures:
    """Measure one point in a process forked for it, whose peak is counted from there on.

    This process must not compute anything itself: threads do not live through a fork.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the parent's peak
            before = peak_mb()
            figures = measure(axis, value)
            os.write(writing, json.dumps({**figures, "mb": peak_mb() - before}).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"error: the process of {axis.fields or 'length'} = {value} ended with status {status}")
    return json.loads(said)


def exponent(values: list[int], figures: list[float]) -> float:
    """Return the slope of a straight line through logarithms: the power with which figures grow.

    Only the larger half of the values is looked at, at least two of them.
    """
    kept = max(2, math.ceil(len(values) / 2))
    x, y = ([math.log(v) for v in some[-kept:]] for some in (values, figures))
    return statistics.linear_regression(x, y).slope


def summary(axis: Axis, rows: list[Figures]) -> Figures:
    """Return the points of an axis with the exponents, measured and in theory."""
    values = [row["value"] for row in rows]
    pairs = {"seconds": "flops", "mb": "bytes"}
    powers = {
        name: {
            "measured": round(exponent(values, [row[name] for row in rows]), 2),
            "theory": round(exponent(values, [row[told] for row in rows]), 2),
        }
        for name, told in pairs.items()
    }
    return {"note": axis.note, "exponents": powers, "points": rows}


def main() -> None:
    """Measure, fit, print and write down."""
    parser = arguments("What a training step costs as a GPT grows.", 1)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what grows")
    parser.add_argument("--most", type=int, default=10**9, help="largest value of lengths, widths and so on")
    given = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    for name in given.axes:
        axis = AXES[name]
        for value in [v for v in axis.values if v <= given.most] or axis.values[:2]:
            rounds = [forked(axis, value) for _ in range(given.rounds)]
            row = {"value": value, **medians(rounds), **theory(axis, value)}
            found.setdefault(name, []).append(row)
            print(name, json.dumps(row), file=sys.stderr)
    kept = {name: summary(AXES[name], rows) for name, rows in found.items() if len(rows) > 1}
    shape = ", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {value}" for key, value in SHAPE.items())
    base = f"{shape}, {BATCH} x {TOKENS} tokens (1 row along the lengths), sdpa, float32"
    write("scaling", {"base": base, **machine(), "rounds": given.rounds, "steps": STEPS, "axes": kept}, given.results)


if __name__ == "__main__":
    main()
