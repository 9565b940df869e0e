"""Write adapters into the weights of their base: a model that needs no PEFT.

    python recipes/merge.py --adapter runs/lora --output_dir runs/merged
    python recipes/merge.py --adapters '[{path: runs/a, weight: 0.7}, {path: runs/b, weight: 0.3}]' --base runs/base
    python recipes/merge.py --adapter runs/lora --output_dir runs/merged-native --to native

The merged model gives the logits of base and adapter to 1e-5 of the largest, or nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gpt_finetune.config import run
from gpt_finetune.errors import InputError


@dataclass
class WeightedAdapter:
    """One adapter of several.

    Args:
        path: Its folder.
        weight: Its share; shares need not add up to 1.
    """

    path: str
    weight: float = 1.0


@dataclass
class MergeConfig:
    """Merge adapters into their base.

    Args:
        adapter: Folder of the adapter.
        adapters: Folders and weights of several, instead of one.
        combination: How several become one: cat is exact; svd, linear, ties, dare_linear, dare_ties and
            magnitude_prune are PEFT's.
        base: Folder, Hub id or packaged name of the base; null takes the one that the adapter names.
        output_dir: Folder to write to; it must be new or empty.
        to: Format to write: gpt_finetune's (ours), or of the first architecture of transformers that fits (native).
        max_shard_size: Largest weight file, with its unit.
    """

    adapter: str | None = None
    adapters: list[WeightedAdapter] = field(default_factory=list)
    combination: str = "cat"
    base: str | None = None
    output_dir: str = "runs/merged"
    to: Literal["ours", "native"] = "ours"
    max_shard_size: str = "5GB"


def main(config: MergeConfig) -> Path:
    """Run the recipe; returns the folder written."""
    from transformers.utils import logging

    from gpt_finetune.adaptation.bases import read_config
    from gpt_finetune.adaptation.config import AdaptConfig
    from gpt_finetune.adaptation.merging import combine, load_adapters, merge
    from gpt_finetune.adaptation.methods import load_base
    from gpt_finetune.conversion import check_is_new, export_native, find_tokenizer, new_folder
    from gpt_finetune.supervised.templates import stop_at_turns

    if (config.adapter is None) == (not config.adapters):
        problem = "it takes one adapter, or a list of several"
        raise InputError("adapter", config.adapter, problem, "Give either adapter=FOLDER or adapters=[…]")
    check_is_new(config.output_dir, "output_dir")
    logging.set_verbosity_error()
    chosen = config.adapters or [WeightedAdapter(config.adapter or "")]
    folders = {f"adapter {i}": Path(adapter.path) for i, adapter in enumerate(chosen, start=1)}
    bases = [read_config(folder).get("base_model_name_or_path") for folder in folders.values()]
    base = config.base or bases[0]
    if not base:
        raise InputError("base", None, "the adapter does not name its base", "Give base=FOLDER")

    model = load_adapters(load_base(base, AdaptConfig()), folders)
    weights = {name: adapter.weight for name, adapter in zip(folders, chosen, strict=True)}
    if len(weights) > 1 or weights["adapter 1"] != 1:
        model = combine(model, weights, config.combination)
    merged = merge(model)
    tokenizer = next((found for path in (*folders.values(), base) if (found := find_tokenizer(path))), None)
    if tokenizer is not None:
        stop_at_turns(merged, tokenizer)
    if config.to == "native":
        export_native(merged, config.output_dir, tokenizer=tokenizer, max_shard_size=config.max_shard_size)
    else:
        with new_folder(config.output_dir) as folder:
            merged.save_pretrained(folder, max_shard_size=config.max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
    print(f"{merged.num_parameters():,} parameters in {config.output_dir}")
    return Path(config.output_dir)


if __name__ == "__main__":
    run(main, MergeConfig)
