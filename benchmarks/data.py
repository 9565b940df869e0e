"""The data path: packing, what a token takes on disk, how long a batch takes, how much of a training waits for it.

    PYTHONPATH=. python benchmarks/data.py

Against the usual way of the popular example scripts: `group_texts` (written anew from its description, see
`benchmarks/packing.py`, which measures its speed bare) through `datasets.map`, Arrow lists of `input_ids`,
`attention_mask` and `labels` on disk, and a default DataLoader over them with transformers' default collator. The same
token ids, the same rows of 256 tokens, batches of 16, in turns in one process. The waiting share is that of a training
of the quickstart's model on our rows, in batches of 4: what Trainer spends on fetching a batch, of all its time. Writes
`benchmarks/results/data.json`.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peers.measuring import Figures, arguments, machine, medians, write
from torch.utils.data import DataLoader

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.data.packing import MixedDataset, PackedDataset, TokenWriter, collate

BLOCK_SIZE, BATCH, VOCABULARY = 256, 16, 4096
LENGTHS = (10, 1500)  # tokens of a document


def documents(tokens: int) -> list[np.ndarray]:
    """Return random documents of so many tokens in all."""
    random = np.random.default_rng(0)
    ids = random.integers(2, VOCABULARY, tokens, dtype=np.uint16)
    ends = np.cumsum(random.integers(*LENGTHS, tokens // LENGTHS[0]))
    return np.split(ids, ends[ends < tokens])


@dataclass(frozen=True)
class Packed:
    """Rows, the bytes that they take on disk, and the seconds that packing took."""

    rows: Any
    size: int
    seconds: float


def pack_ours(given: list[np.ndarray], folder: Path) -> Packed:
    """Pack as `prepare` does, until it is safely on the disk."""
    file = folder / "packed.bin"
    start = time.perf_counter()
    with TokenWriter(file, np.dtype(np.uint16), 0, 1, BLOCK_SIZE) as writer:
        for i in range(0, len(given), 1000):
            writer.write(given[i : i + 1000])
    seconds = time.perf_counter() - start
    rows = MixedDataset([PackedDataset(file, "uint16", writer.tokens, BLOCK_SIZE)], [1.0])
    return Packed(rows, file.stat().st_size, seconds)


def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Chain the lists of every column, drop the remainder, slice, copy `input_ids` to `labels`."""
    joined = {name: list(chain(*lists)) for name, lists in batch.items()}
    whole = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
    rows = {name: [ids[i : i + BLOCK_SIZE] for i in range(0, whole, BLOCK_SIZE)] for name, ids in joined.items()}
    return {**rows, "labels": rows["input_ids"].copy()}


def pack_usual(given: list[np.ndarray], folder: Path) -> Packed:
    """Pack as the example scripts do, from a table of lists, as tokenizing leaves it; the table's making is free."""
    import datasets

    datasets.disable_progress_bars()
    lists = [ids.tolist() for ids in given]
    table = datasets.Dataset.from_dict({"input_ids": lists, "attention_mask": [[1] * len(ids) for ids in lists]})
    file = folder / "usual.arrow"
    start = time.perf_counter()
    rows = table.map(group_texts, batched=True, cache_file_name=str(file))
    return Packed(rows, file.stat().st_size, time.perf_counter() - start)


def fetching(rows: Any, collator: Any, count: int) -> float:
    """Return the milliseconds that a batch takes, at the median."""
    loader = DataLoader(rows, BATCH, shuffle=True, collate_fn=collator, drop_last=True)
    torch.manual_seed(0)
    seconds, iterator = [], iter(loader)
    next(iterator)
    for _ in range(count):
        start = time.perf_counter()
        next(iterator)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def waiting(rows: Any, steps: int) -> float:
    """Return which share of a training's time goes into fetching batches."""
    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.trainer import GPTTrainer

    spent: list[tuple[float, float]] = []  # when a batch was asked for, and when it was there

    class Watched(GPTTrainer):
        def get_batch_samples(self, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            batch = super().get_batch_samples(*given, **named)
            spent.append((start, time.perf_counter()))
            return batch

    config = TrainConfig(max_steps=1 + steps, batch_size=4, precision="float32", log_steps=1000)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    with TemporaryDirectory() as folder:
        trainer = Watched(
            model=GPTForCausalLM(preset("quickstart", **ids)),
            args=training_arguments(config, Path(folder), disable_tqdm=True),
            train_dataset=rows,
            data_collator=collate,
        )
        trainer.train()
    fetched = sum(there - asked for asked, there in spent[1:-1])
    return fetched / (spent[-1][0] - spent[1][0])


def main() -> None:
    """Measure turn by turn, print the medians and write them down."""
    from transformers import default_data_collator

    parser = arguments("The data path against the example scripts'.", 3)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="token ids to pack")
    parser.add_argument("--batches", type=int, default=200, help="batches to fetch")
    parser.add_argument("--steps", type=int, default=20, help="steps of the training that may wait")
    given = parser.parse_args()
    some = documents(given.tokens)
    ways = {"ours": (pack_ours, collate), "group_texts": (pack_usual, default_data_collator)}
    runs: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        with TemporaryDirectory() as folder:
            for name, (pack, collator) in ways.items():
                packed = pack(some, Path(folder))
                figures = {
                    "packed_tokens_per_second": given.tokens / packed.seconds,
                    "bytes_per_token": packed.size / given.tokens,
                    "milliseconds_a_batch": fetching(packed.rows, collator, given.batches),
                }
                runs[name].append(figures)
    with TemporaryDirectory() as folder:
        share = waiting(pack_ours(some, Path(folder)).rows, given.steps)
    told = {name: medians(rows, digits=3) for name, rows in runs.items()}
    report = {
        "work": f"{given.tokens:,} token ids in {len(some):,} documents, rows of {BLOCK_SIZE}, batches of {BATCH}",
        **machine(f"datasets {importlib.metadata.version('datasets')}"),
        "rounds": given.rounds,
        **told,
        "waiting_share_of_training": round(share, 5),
    }
    write("data", report, given.results)


if __name__ == "__main__":
    main()
