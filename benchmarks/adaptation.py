"""Memory and speed of LoRA: ours against full fine-tuning, and against PEFT on transformers' own GPT-2.

    PYTHONPATH=. python benchmarks/adaptation.py [--rounds 3] [--precision float32] [--groups gpt2] [--size tiny]

Optimiser steps with fused AdamW on the same random tokens, in float32 or under autocast to bfloat16, in two groups, the
first in float32 and the second in bfloat16 unless told otherwise:

- smollm2: SmolLM2-135M on 2 rows of 256 tokens, as configs/finetune/smollm2-*-dialogue.yaml have them: full and LoRA;
- gpt2: GPT-2's 124M shape with the same random weights on 4 rows of 512: LoRA of rank 8 on every linear layer but the
  output, ours and PEFT's on transformers' model, whose queries, keys and values are one layer. Dropout is 0, and the
  first losses must agree: an adapter adds nothing yet.

Ours computes as `GPTTrainer` has it, frozen weights in the precision of the products, in a process that keeps its
memory as our recipes' do; PEFT's as it comes, and once more in such a process. Ways take turns, each in a fresh
process: tokens a second, the median of some steps after a warm-up, and the memory that the process took beyond the
imports. Writes `benchmarks/results/adaptation.json`, and keeps what was not measured; a group in another precision than
its own stands there as `gpt2-float32`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from peers.forking import beyond_now, forked
from peers.measuring import ENVIRONMENTS, Figures, arguments, fresh, in_turns, machine, medians, write
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.methods import adapt, load_base
from gpt_finetune.packaged import locate
from gpt_finetune.training.lean import make_lean
from gpt_finetune.training.recompute import recomputed

SMOLLM2 = "smollm2-135m-instruct"
STEPS = 3
PEER = "PEFT and transformers"
# group -> rows and tokens of a batch; its own precision; ways, of which the first is what the others are compared with
GROUPS: dict[str, tuple[tuple[int, int], str, tuple[str, ...]]] = {
    "smollm2": ((2, 256), "float32", ("full", "lora")),
    "gpt2": ((4, 512), "bfloat16", (PEER, f"{PEER}, kept memory", "lora")),
}
SIZES: dict[str, dict[str, int]] = {
    "124M": {},
    "tiny": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 512, "n_positions": 512},
}
LOSSES_AGREE = {"float32": 1e-4, "bfloat16": 2e-3}


def save_weights(size: str, folder: str) -> Figures:
    """Write the weights of the group gpt2."""
    torch.manual_seed(0)
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES[size], **still))
    model.save_pretrained(folder)
    return {"parameters": model.num_parameters()}


def build(way: str, path: str, precision: str) -> Any:
    """Return the model with what the way trains."""
    torch.manual_seed(0)
    if way.startswith(PEER):
        config = AdaptConfig()
        layers = ["c_attn", "c_proj", "c_fc"]
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=config.rank, lora_alpha=config.alpha, target_modules=layers, fan_in_fan_out=True
        )
        return get_peft_model(GPT2LMHeadModel.from_pretrained(path, dtype="float32"), lora)
    config = AdaptConfig(method=way)
    model = adapt(load_base(path, config), config, bf16=precision == "bfloat16")
    make_lean(model, SimpleNamespace(residual="bfloat16", short_attention="products"))
    return model


def one(group: str, way: str, path: str, precision: str) -> Figures:
    """Measure one way in this process."""
    shape, *_ = GROUPS[group]
    model = build(way, path, precision).train()
    model.config.use_cache = False  # as Trainer has it
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rows = torch.randint(500, shape, generator=torch.Generator().manual_seed(1))
    seconds, losses = [], []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        rounded = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with rounded, recomputed(not way.startswith(PEER)):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    count = sum(parameter.numel() for parameter in trained)
    return {
        "trained_parameters": count,
        "share_trained": count / sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_second": rows.numel() / statistics.median(seconds[1:]),
        "first_loss": losses[0],
    }


def command(precision: str) -> list[str]:
    """Return the words that measure one way in a process of its own, but for group, way and folder."""
    return [sys.executable, __file__, "--precision", precision, "--one"]


def environment(way: str) -> dict[str, str]:
    """Return what a way's process is started with."""
    plain = way.startswith(PEER) and not way.endswith("kept memory")
    return ENVIRONMENTS["plain" if plain else "kept memory"]


def compared(ways: dict[str, Figures], precision: str = "float32") -> dict[str, Figures]:
    """Return each way's figures with how many times as fast as the first, and in what share of its memory.

    Raises:
        SystemExit: The first losses differ, so the ways do other work.
    """
    first = next(iter(ways.values()))
    for way, figures in ways.items():
        if abs(figures["first_loss"] - first["first_loss"]) > LOSSES_AGREE[precision]:
            raise SystemExit(f"error: {way} begins at a loss of {figures['first_loss']}, not {first['first_loss']}")
        figures["times_faster"] = round(figures["tokens_per_second"] / first["tokens_per_second"], 3)
        figures["share_of_memory"] = round(figures["peak_mb"] / first["peak_mb"], 3)
    return ways


def main() -> None:
    """Measure turn by turn, print the medians and ratios, and write them down."""
    parser = arguments("Memory and speed of LoRA, against full fine-tuning and against PEFT on transformers.", rounds=3)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--size", choices=SIZES, default="124M", help="of the group gpt2")
    parser.add_argument("--precision", choices=LOSSES_AGREE, help="of all groups; each has its own unless told")
    parser.add_argument("--one", nargs=3, help="group, way and folder: measure one way in this process, and print it")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(beyond_now(partial(one, *given.one, given.precision))))
        return
    precisions = {group: given.precision or GROUPS[group][1] for group in given.groups}
    with TemporaryDirectory() as folder:
        forked(partial(save_weights, given.size, folder))
        paths = {"gpt2": folder, "smollm2": locate(SMOLLM2) if "smollm2" in given.groups else ""}
        acts = {
            f"{group}: {way}": partial(fresh, [*command(precision), group, way, paths[group]], environment(way))
            for group, precision in precisions.items()
            for way in GROUPS[group][2]
        }
        runs = in_turns(acts, given.rounds)
    file = given.results / "adaptation.json"
    report: dict[str, Figures] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for group, precision in precisions.items():
        shape, own, ways = GROUPS[group]
        about = {"batch": f"{shape[0]} rows of {shape[1]} tokens", "precision": precision, **machine()}
        measured = compared({way: medians(runs[f"{group}: {way}"]) for way in ways}, precision)
        name = group if precision == own else f"{group}-{precision}"
        report[name] = {**about, "rounds": given.rounds, "steps": STEPS, **measured}
    write("adaptation", report, given.results)


if __name__ == "__main__":
    main()
