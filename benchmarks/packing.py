"""How fast are token ids packed into rows? Ours against the usual `group_texts`, on the same ids in the same run.

    PYTHONPATH=. python benchmarks/packing.py

Ours appends EOS to every document and writes overlapping blocks to a file. `group_texts` is the recipe of the popular
example scripts, written anew from its description: for each map batch of 1000 documents, chain the lists of every
column, drop the remainder, slice, and copy `input_ids` to `labels`. It is measured bare, in memory, without the Arrow
conversion around it, and adds no EOS: both spare it work. Writes `benchmarks/results/packing.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np

from gpt_finetune.data.packing import TokenWriter

TOKENS, LENGTHS = 20_000_000, (10, 1500)  # ids in all, and the range of a document's length
BLOCK_SIZE, VOCABULARY, ROUNDS, BATCH = 256, 4096, 5, 1000


def ours(documents: list[np.ndarray], folder: Path) -> int:
    """Pack as `prepare` does; return the tokens that become targets."""
    with TokenWriter(folder / "packed.bin", np.dtype(np.uint16), 0, 1, BLOCK_SIZE) as writer:
        for start in range(0, len(documents), BATCH):
            writer.write(documents[start : start + BATCH])
    return writer.tokens - 1 - len(documents)


def group_texts(documents: list[list[int]]) -> int:
    """Pack as the example scripts do; return the tokens that are kept."""
    kept = 0
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        columns = {"input_ids": batch, "attention_mask": [[1] * len(ids) for ids in batch]}
        joined = {name: list(chain(*lists)) for name, lists in columns.items()}
        whole = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        rows = {name: [ids[i : i + BLOCK_SIZE] for i in range(0, whole, BLOCK_SIZE)] for name, ids in joined.items()}
        rows["labels"] = rows["input_ids"].copy()
        kept += whole
    return kept


def speed(pack: Callable[[], int]) -> tuple[float, int]:
    """Return ids per second and ids kept, of one round."""
    start = time.perf_counter()
    kept = pack()
    return TOKENS / (time.perf_counter() - start), kept


def main() -> None:
    """Measure turn by turn, print the medians and write them down."""
    random = np.random.default_rng(0)
    ids = random.integers(2, VOCABULARY, TOKENS, dtype=np.uint16)
    ends = np.cumsum(random.integers(*LENGTHS, TOKENS // LENGTHS[0]))
    arrays = np.split(ids, ends[ends < TOKENS])
    lists = [array.tolist() for array in arrays]
    rounds: dict[str, list[tuple[float, int]]] = {"ours": [], "group_texts": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            rounds["ours"].append(speed(lambda: ours(arrays, Path(folder))))
            rounds["group_texts"].append(speed(lambda: group_texts(lists)))
    result = {
        "tokens": TOKENS,
        "documents": len(arrays),
        "block_size": BLOCK_SIZE,
        "rounds": ROUNDS,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        **{
            name: {
                "tokens_per_second_median": round(statistics.median(rate for rate, _ in measured)),
                "tokens_per_second_all": [round(rate) for rate, _ in measured],
                "tokens_dropped": TOKENS - measured[0][1],
            }
            for name, measured in rounds.items()
        },
    }
    file = Path(__file__).parent / "results" / "packing.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
