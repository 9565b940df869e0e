"""litgpt's own training step, in litgpt's own environment: its model, its chunked loss, fused AdamW, clipping.

    .venv-litgpt/bin/python benchmarks/peers/litgpt_step.py '{"layers": 6, …}'

The step is that of `litgpt pretrain` (`fit` in litgpt/pretrain.py) without Fabric around it: its loss is chunked over
logits that are whole. Its positions are rotary and its head is not tied, so losses are not comparable with GPT-2's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy
from measuring import peak_mb


def main(given: dict) -> dict[str, float]:
    """Measure some steps; `given` names layers, heads, width, vocabulary, tokens, batch, steps, precision."""
    torch.manual_seed(0)
    config = Config(
        n_layer=given["layers"],
        n_head=given["heads"],
        n_embd=given["width"],
        vocab_size=given["vocabulary"],
        padded_vocab_size=given["vocabulary"],
        block_size=given["tokens"],
        intermediate_size=4 * given["width"],
        parallel_residual=False,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)
    shape = (given["batch"], given["tokens"] + 1)
    seconds, losses = [], []
    for _ in range(1 + given["steps"]):
        rows = torch.randint(given["vocabulary"], shape, generator=generator)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=given["precision"] == "bfloat16"):
            loss = chunked_cross_entropy(model(rows[:, :-1]), rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    rate = given["batch"] * given["tokens"] / statistics.median(seconds[1:])
    return {"tokens_per_second": rate, "peak_mb": peak_mb(), "last_loss": losses[-1]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
