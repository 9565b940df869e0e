"""Speed of training a classifier on packed rows, against batches that are padded at random, as Trainer makes them.

    PYTHONPATH=. python benchmarks/tasks_speed.py

Three ways to train a model of GPT-2's smallest size (124 M parameters, dropout 0.1, float32, fused AdamW) on sentences
in GPT-2's tokens: those of film reviews, much alike in length, and those of product reviews, of which few are long:

- packed: recipes/classify.py's rows, several sentences in each, that do not see each other;
- padded, ours: random sentences padded to the longest of a batch, the same model;
- padded, transformers: the same batches through `DataCollatorWithPadding` and `GPT2ForSequenceClassification`.

A packed batch holds about as many sentences as a padded one. The ways take turns, each measurement in a fresh process:
tokens of real text a second, the median over windows of some steps after a warm-up, and the process's peak of resident
memory. Writes `benchmarks/results/tasks-speed.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from gpt_finetune import GPTForSequenceClassification, preset
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.packaged import locate
from gpt_finetune.tasks.classification import PreparedTask, prepare_task
from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer
from gpt_finetune.training.throughput import peak_memory_mb

SOURCES = {name: f"package:vader-sentiment/{name}.jsonl" for name in ("movie", "product")}
WIDTH, ROWS, SENTENCES = 256, 3, 32
WAYS = ("packed", "padded, ours", "padded, transformers")
WINDOWS = 3


def prepare(source: str, packing: bool) -> PreparedTask:
    """Read the sentences as recipes/classify.py does."""
    config = ClassifyDataConfig([RowSourceConfig(SOURCES[source])], max_length=WIDTH, packing=packing)
    return prepare_task(config, padded_tokenizer(load_tokenizer(locate("gpt2-tokenizer")), WIDTH))


def build(way: str, data: PreparedTask) -> Any:
    """Return a model with new weights."""
    torch.manual_seed(0)
    pad = data.collate.pad_id
    if way == "padded, transformers":
        config = transformers.GPT2Config(num_labels=len(data.labels.names), pad_token_id=pad)
        return transformers.GPT2ForSequenceClassification(config).train()
    return GPTForSequenceClassification(preset("gpt2", **data.settings())).train()


def batches(way: str, data: PreparedTask) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches without end; the same sentences in the same order in both padded ways."""
    size = ROWS if way == "packed" else SENTENCES
    collate: Any = data.collate
    if way == "padded, transformers":
        pad = transformers.DataCollatorWithPadding(data.tokenizer)

        def collate(some: list[dict[str, torch.Tensor]]) -> Any:
            return pad([{"input_ids": row["input_ids"].tolist(), "labels": int(row["labels"][0])} for row in some])

    loader = DataLoader(data.train, size, shuffle=True, collate_fn=collate, drop_last=True)
    torch.manual_seed(1)
    while True:
        yield from loader


def one(source: str, way: str, steps: int) -> dict[str, float]:
    """Measure one way in this process."""
    data = prepare(source, way == "packed")
    model, stream = build(way, data), batches(way, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rates, places, tokens = [], 0, 0
    for window in range(1 + WINDOWS):
        some = [next(stream) for _ in range(steps if window else 1)]
        start = time.perf_counter()
        for batch in some:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        if window:
            # what fills a row is the end token, which no text holds
            real = sum(int((batch["input_ids"] != data.collate.pad_id).sum()) for batch in some)
            rates.append(real / seconds)
            places, tokens = places + sum(batch["input_ids"].numel() for batch in some), tokens + real
    return {
        "tokens_per_second": statistics.median(rates),
        "share_of_text": tokens / places,
        "tokens_per_step": tokens / (WINDOWS * steps),
        "peak_mb": peak_memory_mb(),
        "parameters": model.num_parameters(),
    }


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    parser = argparse.ArgumentParser(description="Speed of packed and of padded training of a classifier.")
    parser.add_argument("--rounds", type=int, default=2, help="how often each way has its turn")
    parser.add_argument("--steps", type=int, default=2, help=f"optimiser steps of each of the {WINDOWS} windows")
    parser.add_argument("--source", choices=SOURCES, default="movie", help="with --way: whose sentences")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process, and print it")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one(given.source, given.way, given.steps)))
        return
    turns = [(source, way) for _ in range(given.rounds) for source in SOURCES for way in WAYS]
    measured: dict[tuple[str, str], list[dict[str, float]]] = {turn: [] for turn in turns}
    for source, way in turns:
        command = [sys.executable, __file__, "--source", source, "--way", way, "--steps", str(given.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured[source, way].append(json.loads(done.stdout.splitlines()[-1]))
    found: dict[str, Any] = {source: {} for source in SOURCES}
    for (source, way), rows in measured.items():
        found[source][way] = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    for ways in found.values():
        packed, ours, theirs = (ways[way]["tokens_per_second"] for way in WAYS)
        ways |= {"packed_over_padded_ours": round(packed / ours, 3)}
        ways |= {"packed_over_padded_transformers": round(packed / theirs, 3)}
    report = {
        "batch": f"packed: {ROWS} rows of {WIDTH} tokens; padded: {SENTENCES} sentences",
        "rounds": given.rounds,
        "windows": WINDOWS,
        "steps": given.steps,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        **found,
    }
    file = Path(__file__).parent / "results" / "tasks-speed.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
