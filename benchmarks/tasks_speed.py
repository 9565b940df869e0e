"""Speed of training a classifier on packed rows, against batches that are padded at random, as Trainer makes them.

    PYTHONPATH=. python benchmarks/tasks_speed.py [--rounds 2] [--precision bfloat16] [--sources product] [--size tiny]

Three ways to train a model of GPT-2's smallest size (124 M parameters, dropout 0.1, fused AdamW) on sentences in
GPT-2's tokens: those of film reviews, much alike in length, and those of product reviews, of which few are long:

- packed: recipes/classify.py's rows, several sentences in each, that do not see each other;
- padded, ours: random sentences padded to the longest of a batch, the same model;
- padded, transformers: the same batches through `DataCollatorWithPadding` and `GPT2ForSequenceClassification`.

A packed batch holds about as many sentences as a padded one. Ours computes as `GPTTrainer` has it, in a process that
keeps its memory as our recipes' do. The ways take turns, each measurement in a fresh process: tokens of real text a
second, the median over windows of some steps after a warm-up, and the process's peak of resident memory. Writes
`benchmarks/results/tasks-speed.json`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from peers.measuring import Figures, arguments, machine, on_each_source, peak_mb, write
from torch.utils.data import DataLoader

from gpt_finetune import GPTForSequenceClassification, preset
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.packaged import locate
from gpt_finetune.tasks.classification import PreparedTask, prepare_task
from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer
from gpt_finetune.training.lean import make_lean

SOURCES = {name: f"package:vader-sentiment/{name}.jsonl" for name in ("movie", "product")}
WIDTH, ROWS, SENTENCES = 256, 3, 32
WAYS = ("packed", "padded, ours", "padded, transformers")
WINDOWS = 3
# name -> fields of transformers' GPT2Config
SIZES: dict[str, dict[str, int]] = {"124M": {}, "tiny": {"n_embd": 32, "n_layer": 2, "n_head": 2}}


def prepare(source: str, packing: bool) -> PreparedTask:
    """Read the sentences as recipes/classify.py does."""
    config = ClassifyDataConfig([RowSourceConfig(SOURCES[source])], max_length=WIDTH, packing=packing)
    return prepare_task(config, padded_tokenizer(load_tokenizer(locate("gpt2-tokenizer")), WIDTH))


def build(way: str, data: PreparedTask, size: str) -> Any:
    """Return a model with new weights."""
    torch.manual_seed(0)
    pad, fields = data.collate.pad_id, {**SIZES[size], "use_cache": False}  # as Trainer has it
    if way == "padded, transformers":
        config = transformers.GPT2Config(num_labels=len(data.labels.names), pad_token_id=pad, **fields)
        return transformers.GPT2ForSequenceClassification(config).train()
    model = GPTForSequenceClassification(preset("gpt2", **data.settings(), **fields)).train()
    make_lean(model, SimpleNamespace(residual="bfloat16", short_attention="products"))
    return model


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


def one(source: str, way: str, size: str, precision: str, steps: int) -> Figures:
    """Measure one way in this process."""
    data = prepare(source, way == "packed")
    model, stream = build(way, data, size), batches(way, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rates, places, tokens = [], 0, 0
    for window in range(1 + WINDOWS):
        some = [next(stream) for _ in range(steps if window else 1)]
        start = time.perf_counter()
        for batch in some:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = model(**batch).loss
            loss.backward()
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
        "peak_mb": peak_mb(),
        "parameters": model.num_parameters(),
    }


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    parser = arguments("Speed of packed and of padded training of a classifier.", rounds=2)
    parser.add_argument("--steps", type=int, default=2, help=f"optimiser steps of each of the {WINDOWS} windows")
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--one", nargs=2, help="source and way: measure one in this process, and print it")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one, given.size, given.precision, given.steps)))
        return
    found = on_each_source(__file__, given, WAYS)
    for ways in found.values():
        speeds = {way: figures["tokens_per_second"] for way, figures in ways.items()}
        for way in [way for way in WAYS[1:] if way in ways]:
            ways[f"packed_over_{way.replace(', ', '_')}"] = round(speeds["packed"] / speeds[way], 3)
    about = {
        "batch": f"packed: {ROWS} rows of {WIDTH} tokens; padded: {SENTENCES} sentences",
        "precision": given.precision,
        **machine(),
        "rounds": given.rounds,
        "windows": WINDOWS,
        "steps": given.steps,
    }
    write("tasks-speed", {**about, **found}, given.results)


if __name__ == "__main__":
    main()
