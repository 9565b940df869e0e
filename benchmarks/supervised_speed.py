"""Speed of learning from answers in packed rows, against batches that are padded at random, as Trainer makes them.

    PYTHONPATH=. python benchmarks/supervised_speed.py [--rounds 2] [--precision bfloat16] [--size tiny]

GPT-2's 124M shape (dropout 0.1, fused AdamW) on conversations in GPT-2's tokens with ChatML's turns, at most 512 tokens
each: the short ones of chatterbot-corpus, and the long answers of insuranceqa. Loss on answers only, in three ways:

- packed: recipes/finetune.py's rows, several examples in each, that do not see each other;
- padded, ours: random examples padded to the longest of a batch, the same model;
- padded, transformers: the same batches through `GPT2LMHeadModel`, as TRL's SFTTrainer gives them without packing.

Ours computes as `GPTTrainer` has it, in a process that keeps its memory as our recipes' do. The ways take turns, each
in a fresh process: useful tokens (no padding) a second, the median of windows after a warm-up, at about the same number
of them a step, and the memory that the process took beyond the imports. Writes
`benchmarks/results/supervised-speed.json`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from peers.forking import beyond_now, seconds_of
from peers.measuring import Figures, arguments, machine, on_each_source, write

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.packaged import locate
from gpt_finetune.supervised.config import ExamplesConfig, ExampleSourceConfig
from gpt_finetune.supervised.prepare import PreparedExamples, prepare_examples
from gpt_finetune.training.lean import make_lean

SOURCES = {"chat": "package:chatterbot-corpus/english.jsonl", "insurance": "package:insuranceqa/en.jsonl"}
LIMIT = 600  # examples of a source: enough for its lengths
WAYS = ("packed", "padded, ours", "padded, transformers")
WINDOWS = 3
Batch = dict[str, torch.Tensor]
# name -> fields of transformers' GPT2Config, tokens of a packed row and at most of an example, packed rows of a batch
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "124M": ({}, 512, 2),  # of 4, transformers' whole logits of padded rows take more than 24 GB
    "tiny": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, 64, 2),
}


def prepare(source: str, width: int, packing: bool) -> PreparedExamples:
    """Read the examples as recipes/finetune.py does."""
    sources = [ExampleSourceConfig(SOURCES[source], limit=LIMIT)]
    config = ExamplesConfig(sources, validation_fraction=0, chat_template="chatml", max_length=width, packing=packing)
    return prepare_examples(config, load_tokenizer(locate("gpt2-tokenizer")))


def build(way: str, size: str, vocabulary: int) -> Any:
    """Return a model with new weights."""
    torch.manual_seed(0)
    fields = {**SIZES[size][0], "vocab_size": vocabulary}
    if way == "padded, transformers":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields, use_cache=False)).train()
    model = GPTForCausalLM(preset("gpt2", **fields, use_cache=False)).train()
    make_lean(model, SimpleNamespace(residual="bfloat16", short_attention="products"))
    return model


def batches(data: PreparedExamples, rows: int) -> Iterator[tuple[Batch, int]]:
    """Yield batches without end, each with how many of its tokens are no padding; both padded ways get the same."""
    draw = torch.Generator().manual_seed(1)
    while True:
        order = torch.randperm(len(data.train), generator=draw).tolist()
        for start in range(0, max(1, len(order) - rows + 1), rows):
            chosen = order[start : start + rows]
            batch = data.collate([data.train[number] for number in chosen])
            yield batch, sum(data.train.lengths[number] for number in chosen)


def one(source: str, way: str, size: str, precision: str, steps: int) -> Figures:
    """Measure one way in this process."""
    _, width, rows = SIZES[size]
    data = prepare(source, width, way == "packed")
    if way != "packed":  # as many examples as hold what the packed rows hold
        rows = max(1, round(rows * width / statistics.mean(data.train.lengths)))
    model, stream = build(way, size, len(data.tokenizer)), batches(data, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    narrow = precision == "bfloat16"

    def learn(some: list[tuple[Batch, int]]) -> None:
        for batch, _ in some:
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    rates, places, useful = [], 0, 0
    learn([next(stream)])  # warm-up
    for _ in range(WINDOWS):
        some = [next(stream) for _ in range(steps)]
        real = sum(count for _, count in some)
        rates.append(real / seconds_of(partial(learn, some)))
        places, useful = places + sum(batch["input_ids"].numel() for batch, _ in some), useful + real
    return {
        "useful_tokens_per_second": statistics.median(rates),
        "share_of_text": useful / places,
        "useful_tokens_per_step": useful / (WINDOWS * steps),
        "parameters": model.num_parameters(),
    }


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    parser = arguments("Speed of learning from answers, in packed rows and in padded ones.", rounds=2)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--steps", type=int, default=1, help=f"optimiser steps of each of the {WINDOWS} windows")
    parser.add_argument("--one", nargs=2, help="source and way: measure one in this process, and print it")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(beyond_now(partial(one, *given.one, given.size, given.precision, given.steps))))
        return
    found = on_each_source(__file__, given, WAYS)
    for ways in found.values():
        packed, speed = ways["packed"], "useful_tokens_per_second"
        for way in [way for way in WAYS[1:] if way in ways]:
            ways[way]["packed_is_times_faster"] = round(packed[speed] / ways[way][speed], 3)
            ways[way]["packed_takes_share_of_memory"] = round(packed["peak_mb"] / ways[way]["peak_mb"], 3)
    _, width, rows = SIZES[given.size]
    about = {
        "batch": f"packed: {rows} rows of {width} tokens; padded: as many examples as hold {rows * width} on average",
        "precision": given.precision,
        **machine(),
        "rounds": given.rounds,
        "steps": given.steps,
    }
    write("supervised-speed", {**about, **found}, given.results)


if __name__ == "__main__":
    main()
