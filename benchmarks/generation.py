"""Speed and memory of greedy generation: ours, whole and quantised, against transformers' own GPT-2.

    PYTHONPATH=. python benchmarks/generation.py [--rounds 3] [--passes 2] [--ways ours transformers] [--size tiny]

GPT-2's 124M shape with the same random weights for all; prompts of 64 tokens, 64 new ones, batch 1 and 8. The ways take
turns, each in a process forked for it, after a warm-up; of its passes the fastest counts: what else a machine runs
only takes time. A streamer notes when each token comes: the first, and the median of the steps between the others.
Whole weights in float32 must write the same tokens as transformers'.

`times_faster` is over transformers in the same precision (for quantised weights: of what they compute in), by tokens a
second with the prompt; `times_faster_than_best` over the faster of its two: a processor without bfloat16 instructions
emulates them. Ceilings come from the same run: what reading all weights once would allow, and the products of a step
without anything else. Writes `benchmarks/results/generation.json`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers.forking import clear_peak, forked, seconds_of
from peers.measuring import Figures, arguments, in_turns, machine, peak_mb, write
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

from gpt_finetune import GPTForCausalLM
from gpt_finetune.caching import GrowingCache
from gpt_finetune.quantization import quantization_config
from gpt_finetune.quantization.quantizer import summarize


@dataclass(frozen=True)
class Way:
    """One way to generate.

    Args:
        made: Class of the model.
        dtype: What it computes in.
        quantize: Name of its quantisation.
        grows: Its cache is ours, which grows in blocks.
        options: Of `generate`.
    """

    made: Any
    dtype: str = "float32"
    quantize: str | None = None
    grows: bool = False
    options: dict[str, Any] = field(default_factory=dict)


WAYS: dict[str, Way] = {
    "transformers": Way(GPT2LMHeadModel),
    "ours": Way(GPTForCausalLM),
    "ours, static cache": Way(GPTForCausalLM, options={"cache_implementation": "static"}),
    "transformers, bfloat16": Way(GPT2LMHeadModel, "bfloat16"),
    "ours, bfloat16": Way(GPTForCausalLM, "bfloat16"),
    "ours, bfloat16, static cache": Way(GPTForCausalLM, "bfloat16", options={"cache_implementation": "static"}),
    "ours, bfloat16, laid out anew": Way(GPTForCausalLM, "bfloat16", "bf16"),
    "ours, bfloat16, laid out anew, growing cache": Way(GPTForCausalLM, "bfloat16", "bf16", grows=True),
    "ours, bfloat16, int8, growing cache": Way(GPTForCausalLM, "bfloat16", "int8", grows=True),
    "ours, bfloat16, int4, growing cache": Way(GPTForCausalLM, "bfloat16", "int4", grows=True),
    "ours, int8": Way(GPTForCausalLM, "float32", "int8"),
    "ours, int4": Way(GPTForCausalLM, "float32", "int4"),
}
PEERS = {"float32": "transformers", "bfloat16": "transformers, bfloat16"}
# name -> fields of transformers' GPT2Config, tokens of a prompt, new tokens
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "124M": ({}, 64, 64),
    "tiny": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 64}, 8, 8),
}
CEILINGS = "ceilings"


def save_weights(size: str, folder: str) -> Figures:
    """Write the weights that all ways load."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES[size][0]))
    model.save_pretrained(folder)
    return {"parameters": model.num_parameters()}


class Clock(BaseStreamer):
    """Notes when tokens come; the prompt is the first thing that `generate` tells it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing more."""


def one(name: str, folder: str, size: str, batches: list[int], passes: int) -> Figures:
    """Measure one way in this process, at each batch size."""
    way, (_, prompt, new) = WAYS[name], SIZES[size]
    more = {"quantization_config": quantization_config(way.quantize)} if way.quantize else {}
    model = way.made.from_pretrained(folder, dtype=getattr(torch, way.dtype), **more).eval()
    found: Figures = {"weights_mb": summarize(model).nbytes / 1e6}
    before = peak_mb()
    for batch in batches:
        ids = torch.randint(model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(1))
        asked = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}

        def written(length: int, ids: Any = ids, asked: Any = asked, **more: Any) -> torch.Tensor:
            if way.grows:
                more["past_key_values"] = GrowingCache(model.config)
            return model.generate(ids, max_new_tokens=length, **asked, **way.options, **more)

        written(2)  # warm-up
        clear_peak()
        tried = []
        for _ in range(passes):
            clock, start = Clock(), time.perf_counter()
            tokens = written(new, streamer=clock)[:, prompt:]
            total, first = time.perf_counter() - start, clock.times[1] - start
            tried.append((total, first, statistics.median(b - a for a, b in pairwise(clock.times[1:]))))
        total, first, step = (min(figures) for figures in zip(*tried, strict=True))
        found[str(batch)] = {
            "tokens_per_second": batch * new / total,
            "ms_to_first_token": 1000 * first,
            "ms_per_step": 1000 * step,
            "generating_peak_mb": peak_mb(),
            "tokens": tokens.tolist(),
        }
    return {**found, "loading_peak_mb": before}


def ceilings(size: str, batches: list[int]) -> Figures:
    """Measure what no way can pass: the matrix products of a step by themselves, and reading memory."""
    config = GPT2Config(**SIZES[size][0])
    width, layers, found = config.n_embd, config.n_layer, {}
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    shapes.append((config.vocab_size, width))
    for dtype in PEERS:
        weights = [torch.randn(shape).to(getattr(torch, dtype)) for shape in shapes]
        for batch in batches:
            rows = {inputs: torch.randn(batch, inputs).to(weights[0].dtype) for inputs in (width, 4 * width)}

            def products(weights: Any = weights, rows: Any = rows) -> None:
                for weight in weights:
                    torch.nn.functional.linear(rows[weight.shape[1]], weight)

            products()
            ms = 1000 * min(seconds_of(products) for _ in range(8))
            found[f"products_ms_{dtype}_batch_{batch}"] = ms
    block = torch.ones(2**26 if size == "124M" else 2**16)  # 256 MB: no cache holds it
    found["read_gb_per_second"] = block.nbytes / min(seconds_of(block.sum) for _ in range(5)) / 1e9
    return found


def summary(runs: dict[str, list[Figures]], batches: list[int]) -> Figures:
    """Return medians over the rounds, a table a batch size, and how many times as fast as transformers' each way is.

    Raises:
        SystemExit: Ours and transformers' wrote other tokens in float32, so they did other work.
    """
    ceiling = {key: round(min(run[key] for run in runs[CEILINGS]), 3) for key in runs[CEILINGS][0] if key != "peak_mb"}
    ceiling["read_gb_per_second"] = round(max(run["read_gb_per_second"] for run in runs[CEILINGS]), 2)
    report: Figures = {CEILINGS: ceiling}
    for batch in map(str, batches):
        table: dict[str, Figures] = {}
        for name in WAYS:
            if name in runs:
                table[name] = _medians([{**run, **run[batch]} for run in runs[name]])
                if "transformers" in runs:
                    table[name]["same_tokens"] = _agree(runs, name, batch)
        if table.get("ours", {}).get("same_tokens", 1.0) != 1.0:
            raise SystemExit(f"error: batch {batch}: ours wrote other tokens than transformers' in float32")
        peers = {dtype: table[name]["tokens_per_second"] for dtype, name in PEERS.items() if name in table}
        for name, figures in table.items():
            if peer := peers.get(WAYS[name].dtype):
                figures["times_faster"] = round(figures["tokens_per_second"] / peer, 3)
                figures["times_faster_than_best"] = round(figures["tokens_per_second"] / max(peers.values()), 3)
            products = ceiling.get(f"products_ms_{WAYS[name].dtype}_batch_{batch}")
            if products and WAYS[name].quantize is None:
                figures["share_in_products"] = round(products / figures["ms_per_step"], 3)
        report[f"batch_{batch}"] = table
    return report


def _medians(rows: list[Figures]) -> Figures:
    keys = [key for key, value in rows[0].items() if isinstance(value, int | float)]
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in keys}


def _agree(runs: dict[str, list[Figures]], name: str, batch: str) -> float:
    """Return the share of tokens that transformers' float32 model wrote, too, in their places."""
    pairs = [
        (mine, theirs)
        for row, other in zip(runs[name][0][batch]["tokens"], runs["transformers"][0][batch]["tokens"], strict=True)
        for mine, theirs in zip(row, other, strict=True)
    ]
    return round(sum(mine == theirs for mine, theirs in pairs) / len(pairs), 3)


def main() -> None:
    """Measure in turns, print and write down."""
    parser = arguments("Speed and memory of greedy generation, ours and transformers'.", rounds=3)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--passes", type=int, default=2, help="how often a way generates in a turn; the fastest counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        forked(partial(save_weights, given.size, folder))
        acts = {name: partial(one, name, folder, given.size, given.batches, given.passes) for name in given.ways}
        acts[CEILINGS] = partial(ceilings, given.size, given.batches)
        runs = in_turns({name: partial(forked, act) for name, act in acts.items()}, given.rounds)
    _, prompt, new = SIZES[given.size]
    about = {
        "shape": f"GPT-2 {given.size}, prompt {prompt}, {new} new tokens, greedy",
        **machine(),
        "rounds": given.rounds,
        "passes": given.passes,
    }
    write("generation", {**about, **summary(runs, given.batches)}, given.results)


if __name__ == "__main__":
    main()
