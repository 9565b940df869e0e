"""Speed and memory of greedy generation: ours, whole and quantised, against transformers' own GPT-2.

    PYTHONPATH=. python benchmarks/generation.py [--dtype bfloat16] [--rounds 3] [--batches 1 8]

GPT-2's 124M shape with random weights, the same for all; prompts of 64 tokens, 64 new ones, batch 1 and 8. The ways
take turns, each measurement in a fresh process after a warm-up. Time to first token is a `generate` of one token. Whole
weights in float32 must write the same tokens as transformers'. Writes `benchmarks/results/generation.json`, and keeps
what other sections it finds there.
"""

from __future__ import annotations

import argparse
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
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_finetune import GPTForCausalLM
from gpt_finetune.quantization import quantization_config
from gpt_finetune.quantization.quantizer import summarize
from gpt_finetune.training.throughput import peak_memory_mb

PROMPT, NEW, VOCABULARY = 64, 64, 50257
BATCHES = (1, 8)
FILE = Path(__file__).parent / "results" / "generation.json"
# way -> class, name of the quantisation, options of `generate`
WAYS: dict[str, tuple[Any, str | None, dict[str, Any]]] = {
    "transformers": (GPT2LMHeadModel, None, {}),
    "ours": (GPTForCausalLM, None, {}),
    "ours_int8": (GPTForCausalLM, "int8", {}),
    "ours_int4": (GPTForCausalLM, "int4", {}),
    # a static cache is compiled by `generate` on a GPU only
    "ours_static_cache": (GPTForCausalLM, None, {"cache_implementation": "static"}),
}


def one(way: str, weights: str, dtype: str, batch: int) -> dict[str, Any]:
    """Measure one way in this process."""
    made, name, options = WAYS[way]
    more = {"quantization_config": quantization_config(name)} if name else {}
    model = made.from_pretrained(weights, dtype=getattr(torch, dtype), **more).eval()
    ids = torch.randint(VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    asked = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    asked |= options

    def seconds(new: int) -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        written = model.generate(ids, max_new_tokens=new, min_new_tokens=new, **asked)
        return time.perf_counter() - start, written[:, PROMPT:]

    seconds(2)  # warm-up
    first = seconds(1)[0]
    total, written = seconds(NEW)
    return {
        "tokens_per_second": batch * NEW / total,
        "ms_to_first_token": 1000 * first,
        "weights_mb": summarize(model).nbytes / 1e6,
        "peak_mb": peak_memory_mb(),
        "tokens": written.tolist(),
    }


def main() -> None:
    """Measure in turns, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--output", type=Path, default=FILE)
    told = parser.parse_args()
    report: dict[str, Any] = json.loads(told.output.read_text()) if told.output.is_file() else {}
    found: dict[str, Any] = {}
    with TemporaryDirectory() as weights:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY)).save_pretrained(weights)
        for batch in told.batches:
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(told.rounds):
                for way in WAYS:
                    command = [sys.executable, __file__, way, weights, told.dtype, str(batch)]
                    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                    runs[way].append(json.loads(output.splitlines()[-1]))
            if told.dtype == "float32" and runs["ours"][0]["tokens"] != runs["transformers"][0]["tokens"]:
                raise SystemExit("ours and transformers' write other tokens, so they do other work")
            found[f"batch_{batch}"] = medians(runs)
    report[told.dtype] = {
        "shape": f"GPT-2 124M, prompt {PROMPT}, {NEW} new tokens, greedy",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rounds": told.rounds,
        **found,
    }
    told.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report[told.dtype], indent=2))


def medians(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure of each way, and how many times as fast as transformers' it is."""
    table = {
        way: {key: round(statistics.median(run[key] for run in rows), 2) for key in rows[0] if key != "tokens"}
        for way, rows in runs.items()
    }
    theirs = table["transformers"]["tokens_per_second"]
    for figures in table.values():
        figures["times_faster"] = round(figures["tokens_per_second"] / theirs, 3)
    return table


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in WAYS:
        print(json.dumps(one(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
