"""Convert a checkpoint: a GPT-2, Llama, … into gpt_finetune's format, or a model of ours into one of theirs.

    python recipes/convert.py --model openai-community/gpt2 --output_dir runs/gpt2
    python recipes/convert.py --model runs/gpt2 --output_dir runs/gpt2-native --to native

Weights and configuration survive the way there and back bit for bit. Loading needs no conversion beforehand:
`GPTForCausalLM.from_pretrained` reads the same checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt_finetune.config import run
from gpt_finetune.errors import InputError, did_you_mean


@dataclass
class ConvertConfig:
    """Convert a checkpoint.

    Args:
        model: Folder or Hub id of a checkpoint of ours, or of an architecture that `to` lists; or the name of a model
            that arrives as a package: smollm2-135m-instruct.
        output_dir: Folder to write to; it must be new or empty.
        to: Format to write: gpt_finetune's, that of an architecture of transformers, or the first of these that
            fits (native).
        dtype: Precision of the weights written; auto keeps that of the checkpoint.
        overrides: Fields of GPTConfig to change on the way, e.g. `overrides.residual_dropout=0.0`.
        max_shard_size: Largest weight file, with its unit.
    """

    model: str = "runs/quickstart"
    output_dir: str = "runs/converted"
    to: Literal[
        "gpt_finetune",
        "native",
        "gpt2",
        "openai-gpt",
        "gpt_bigcode",
        "gpt_neo",
        "gptj",
        "gpt_neox",
        "opt",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gpt_oss",
        "gemma3_text",
        "nanochat",
    ] = "gpt_finetune"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    overrides: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "5GB"


def main(config: ConvertConfig) -> Path:
    """Run the recipe; returns the folder written."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    from gpt_finetune import GPTConfig, GPTForCausalLM, export_native
    from gpt_finetune.conversion import check_is_new, find_tokenizer, new_folder
    from gpt_finetune.packaged import locate

    check_is_new(config.output_dir, "output_dir")
    known = {*GPTConfig.__dataclass_fields__, *GPTConfig.attribute_map}
    for name, value in config.overrides.items():
        if name not in known:
            raise InputError(f"overrides.{name}", value, "there is no such field", did_you_mean(name, known))
    logging.set_verbosity_error()
    path = locate(config.model)
    try:
        model = GPTForCausalLM.from_pretrained(path, dtype=config.dtype, **config.overrides)
    except InputError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        problem = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            "model", config.model, problem, "Give a checkpoint's folder or Hub id, and overrides that fit"
        ) from None
    tokenizer = find_tokenizer(path)

    if config.to == "gpt_finetune":
        with new_folder(config.output_dir) as folder:
            model.save_pretrained(folder, max_shard_size=config.max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
    else:
        dialect = None if config.to == "native" else config.to
        export_native(model, config.output_dir, dialect, tokenizer=tokenizer, max_shard_size=config.max_shard_size)
    print(f"{model.num_parameters():,} parameters in {config.output_dir}")
    return Path(config.output_dir)


if __name__ == "__main__":
    run(main, ConvertConfig)
