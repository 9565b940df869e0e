"""What weights of fewer bits cost: the perplexity of SmolLM2-135M-Instruct, whole and quantised.

    PYTHONPATH=. python benchmarks/perplexity.py [--tokens 1024]

The start of BBC's news articles, twice: at once, as a prompt is read, and token after token with a cache, as a model
writes, which is another kernel. Changes are those of a model in the same precision that is whole. Writes
`benchmarks/results/perplexity.json`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peers.measuring import Figures, arguments, machine, write
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from gpt_finetune import GPTForCausalLM
from gpt_finetune.caching import GrowingCache
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.packaged import locate
from gpt_finetune.quantization import quantization_config
from gpt_finetune.quantization.config import WeightOnlyConfig
from gpt_finetune.tasks.config import RowSourceConfig
from gpt_finetune.tasks.sources import read_rows

MODEL, TEXT = "smollm2-135m-instruct", "package:bbc-news/news.jsonl"
WAYS: dict[str, WeightOnlyConfig | None] = {
    "whole": None,
    **{name: quantization_config(name) for name in ("bf16", "int8", "int4")},
    "int8, dot": WeightOnlyConfig(bits=8, backend="dot"),
    "int8, split": WeightOnlyConfig(bits=8, backend="split"),
    "int4, head of 4 bits": WeightOnlyConfig(bits=4, head_bits=4),
}


def perplexity(model: Any, ids: torch.Tensor, at_once: int) -> float:
    """Return exp of the mean loss of all tokens (1, T) but the first, read so many at once."""
    cache = GrowingCache(model.config)
    pieces = tqdm(ids[:, :-1].split(at_once, dim=1), desc=f"{at_once} at once", delay=2, leave=False)
    with torch.no_grad():
        logits = torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)
    return math.exp(cross_entropy(logits[0].double(), ids[0, 1:]).item())


def main() -> None:
    """Read the text by each way, print and write down."""
    parser = arguments("Perplexity of quantised weights.", rounds=1)
    parser.add_argument("--tokens", type=int, default=1024, help="of the text")
    given = parser.parse_args()
    path = locate(MODEL)
    texts = (row.value["text"] for row in read_rows(RowSourceConfig(TEXT), "text"))
    text = "\n\n".join(next(texts) for _ in range(1 + given.tokens // 100))
    ids = torch.tensor([load_tokenizer(path)(text)["input_ids"][: given.tokens]])
    report: Figures = {"model": MODEL, "text": f"{TEXT}, its first {ids.shape[1]:,} tokens", **machine()}
    for dtype in (torch.float32, torch.bfloat16):
        table: dict[str, Figures] = {}
        for name, quantized in WAYS.items():
            more = {} if quantized is None else {"quantization_config": quantized}
            model = GPTForCausalLM.from_pretrained(path, dtype=dtype, **more).eval()
            found = {"prompt": perplexity(model, ids, ids.shape[1]), "one_by_one": perplexity(model, ids, 1)}
            table[name] = {key: round(value, 3) for key, value in found.items()}
            table[name] |= {f"change_{key}": round(value / table["whole"][key] - 1, 4) for key, value in found.items()}
            print(name, table[name], flush=True)
        report[str(dtype).removeprefix("torch.")] = table
    write("perplexity", report, given.results)


if __name__ == "__main__":
    main()
