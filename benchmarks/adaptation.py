"""Memory and speed of LoRA against full fine-tuning, on SmolLM2-135M and the same batches.

    PYTHONPATH=. python benchmarks/adaptation.py

Optimiser steps on 2 rows of 256 random tokens, as configs/finetune/smollm2-*-dialogue.yaml have them, float32, fused
AdamW. Methods take turns, each measurement in a fresh process: the median of some steps after a warm-up, and the
process's peak of resident memory, of which importing the libraries is told apart. Writes
`benchmarks/results/adaptation.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.methods import adapt, load_base
from gpt_finetune.packaged import locate
from gpt_finetune.training.throughput import peak_memory_mb

MODEL = "smollm2-135m-instruct"
ROWS, TOKENS, STEPS, ROUNDS = 2, 256, 4, 3
METHODS = ("full", "lora")


def one(method: str) -> dict[str, float]:
    """Measure one method in this process."""
    torch.manual_seed(0)
    libraries = psutil.Process().memory_info().rss / 1e6
    config = AdaptConfig(method=method)
    model = adapt(load_base(locate(MODEL), config), config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rows = torch.randint(1000, (ROWS, TOKENS))
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    count = sum(parameter.numel() for parameter in trained)
    return {
        "trained_parameters": count,
        "share_trained": count / sum(parameter.numel() for parameter in model.parameters()),
        "seconds_a_step": statistics.median(seconds[1:]),
        "peak_mb": peak_memory_mb(),
        "libraries_mb": libraries,
    }


def grown(figures: dict[str, float]) -> float:
    """Return what a process took beyond the libraries, in MB."""
    return figures["peak_mb"] - figures["libraries_mb"]


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    rounds: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for _ in range(ROUNDS):
        for method in METHODS:
            run = subprocess.run([sys.executable, __file__, method], stdout=subprocess.PIPE, text=True, check=True)
            rounds[method].append(json.loads(run.stdout.splitlines()[-1]))
    medians: dict[str, Any] = {
        method: {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
        for method, rows in rounds.items()
    }
    full, lora = (medians[method] for method in METHODS)
    report = {
        "model": f"{MODEL}, float32, {ROWS} x {TOKENS} tokens",
        "rounds": ROUNDS,
        "steps": STEPS,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **medians,
        "share_of_memory": round(grown(lora) / grown(full), 3),
        "share_of_process": round(lora["peak_mb"] / full["peak_mb"], 3),
        "share_of_time": round(lora["seconds_a_step"] / full["seconds_a_step"], 3),
    }
    file = Path(__file__).parent / "results" / "adaptation.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(one(sys.argv[1])))
    else:
        main()
