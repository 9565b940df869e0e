"""Training speed and memory of a GPT-2 of ours under GPTTrainer, against transformers' own under its Trainer.

    PYTHONPATH=. python benchmarks/training.py

The same architecture (6 layers x 384, vocabulary 50,304), first weights, rows of 256 tokens, batch of 16, float32,
fused AdamW, each as shipped. The two take turns, each measurement in a fresh process: the median of some steps after a
warm-up, and the peak of resident memory. Their losses after the last step must agree to 1e-5, which shows that they do
the same work. Writes `benchmarks/results/training.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from gpt_finetune import GPTForCausalLM
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.throughput import matmul_ceiling, peak_memory_mb
from gpt_finetune.training.trainer import GPTTrainer

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "vocab_size": 50304, "n_positions": 256}
ROWS, TOKENS, STEPS, ROUNDS = 16, 256, 4, 3
WAYS = {"transformers": (GPT2LMHeadModel, Trainer), "ours": (GPTForCausalLM, GPTTrainer)}
LOSSES_AGREE = 1e-5


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.ends.append(time.perf_counter())


def save_first_weights(folder: str) -> None:
    """Draw the weights that both begin with."""
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    GPT2LMHeadModel(GPT2Config(**SHAPE, **dropout)).save_pretrained(folder)


def one(way: str, weights: str) -> dict[str, float]:
    """Measure one way in this process."""
    made, trainer_class = WAYS[way]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(SHAPE["vocab_size"], (ROWS * (1 + STEPS), TOKENS), generator=generator)
    labels = rows.clone()
    labels[:, 0] = -100  # nothing predicts it, but transformers' Trainer counts it among the tokens it divides by
    config = TrainConfig(
        max_steps=1 + STEPS, batch_size=ROWS, log_steps=1, precision="float32", schedule="constant", learning_rate=1e-3
    )
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=made.from_pretrained(weights),
            args=training_arguments(config, Path(folder), disable_tqdm=True),
            train_dataset=[{"input_ids": row, "labels": told} for row, told in zip(rows, labels, strict=True)],
            callbacks=[clock],
        )
        trainer.train()
    seconds = [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "tokens_per_second": ROWS * TOKENS / statistics.median(seconds),
        "peak_mb": peak_memory_mb(),
        "last_loss": losses[-1],
    }


def main() -> None:
    """Measure in turns, print and write down."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as weights:
        save_first_weights(weights)
        for _ in range(ROUNDS):
            for way in WAYS:
                told = subprocess.run([sys.executable, __file__, way, weights], check=True, stdout=subprocess.PIPE)
                runs[way].append(json.loads(told.stdout.splitlines()[-1]))
    found = {way: {key: statistics.median(run[key] for run in rows) for key in rows[0]} for way, rows in runs.items()}
    ours, theirs = found["ours"], found["transformers"]
    if abs(ours["last_loss"] - theirs["last_loss"]) > LOSSES_AGREE:
        raise SystemExit(f"the losses differ, so the work does: {found}")
    report = {
        "shape": f"{SHAPE['n_layer']} x {SHAPE['n_embd']}, vocabulary {SHAPE['vocab_size']}, {ROWS} x {TOKENS} tokens",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32",
        "ceiling_gflops": round(matmul_ceiling("cpu", torch.float32) / 1e9, 1),
        "rounds": ROUNDS,
        "steps": STEPS,
        **{way: {key: round(value, 4) for key, value in figures.items()} for way, figures in found.items()},
        "times_faster": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
        "share_of_memory": round(ours["peak_mb"] / theirs["peak_mb"], 3),
    }
    file = Path(__file__).parent / "results" / "training.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(one(*sys.argv[1:])))
    else:
        main()
