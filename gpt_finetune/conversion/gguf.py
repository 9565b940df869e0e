"""GGUF files in: transformers' reader gives the configuration and the weights, in floating point, by its own names."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.gguf import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import cached_file
from transformers.utils.import_utils import is_gguf_available

from gpt_finetune.conversion.configs import find_dialect
from gpt_finetune.errors import InputError

# Our field -> GGUF's, for what transformers' reader knows of some architectures only.
_SIZES = {
    "max_position_embeddings": "context_length",
    "intermediate_size": "feed_forward_length",
    "head_dim": "attention.key_length",
}
# Their field -> its only value with which all is right that the file does not say: Gemma's scale of scores, here.
_ASSUMED = {"gemma3_text": {"head_dim": 256}}
_REMEDY = "Use the checkpoint that it was made from"


def find_gguf(path: str | os.PathLike[str], name: str, **location: Any) -> str:
    """Return where a GGUF file lies on this machine, fetched if `path` is a Hub id.

    Raises:
        InputError: The `gguf` package, which reads it, is not installed.
    """
    if not is_gguf_available():
        problem = "reading it takes the package gguf, which is not installed"
        raise InputError("gguf_file", name, problem, "Run `pip install gguf`")
    return cached_file(path, name, **location)


def config_from_gguf(file: str) -> PreTrainedConfig:
    """Read the configuration that a GGUF file states, as transformers' own.

    Args:
        file: From `find_gguf`.

    Raises:
        InputError: The file is no GGUF, its architecture is unknown to transformers or to us, or it says something
            that transformers would drop in silence.
    """
    try:
        metadata, tensors = read_gguf_metadata(file)
        content, _ = PreTrainedConfig.get_config_dict(file, gguf_file=file)
    except (ValueError, KeyError, TypeError) as error:  # it does not check what it reads
        raise InputError("gguf_file", file, f"transformers cannot read it ({error})", _REMEDY) from None
    dialect = find_dialect(content["model_type"])
    content.pop("_model_name_or_path", None)  # a title
    prefix = metadata["general.architecture"]
    for ours, key in _SIZES.items():
        if ours in dialect.fields and (size := metadata.get(f"{prefix}.{key}")) is not None:
            content[dialect.fields[ours]] = size
    config = AutoConfig.for_model(**content)
    for field, value in _ASSUMED.get(config.model_type, {}).items():
        if (found := getattr(config, field)) != value:
            problem = (
                f"{field} is {found}, and what follows from it is known for {value} only: the file does not say it"
            )
            raise InputError("gguf_file", file, problem, _REMEDY)
    scaled = metadata.get(f"{prefix}.rope.scaling.type", "none") != "none" or any(
        name.startswith("rope_f") for name in tensors
    )  # rope_freqs, rope_factors_long, …
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaled and (kind == "default" or not isinstance(kind, str)):  # gpt-oss's reader takes a length for the name
        problem = "its rotary positions are scaled, which transformers does not read from a GGUF"
        raise InputError("gguf_file", file, problem, _REMEDY)
    return config


def weights_from_gguf(file: str, config: PreTrainedConfig, dtype: Any = None) -> dict[str, torch.Tensor]:
    """Read the weights, by the names that transformers' causal language model of this configuration has.

    Args:
        file: From `find_gguf`.
        config: From `config_from_gguf`.
        dtype: Precision to hold them in; None, and what only `from_pretrained` understands, means float32, in which
            blocks of whatever format are exact.

    Raises:
        InputError: Some weight is not found: it would be drawn at random, with no more than a warning.
    """
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)  # "auto" is none
    with torch.device("meta"):  # only its names matter
        names = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    # The reader maps names by this, and GGUF calls some architectures otherwise: a Mistral is a llama there.
    names.config.model_type = read_gguf_metadata(file)[0]["general.architecture"]
    precision = dtype if isinstance(dtype, torch.dtype) else None
    weights = load_gguf_checkpoint(file, return_tensors=True, model_to_load=names, torch_dtype=precision)["tensors"]
    if missing := sorted(names.state_dict().keys() - weights.keys() - names.all_tied_weights_keys.keys()):
        problem = f"transformers does not find all weights of a {type(names).__name__} in it, such as {missing[0]}"
        raise InputError("gguf_file", file, problem, _REMEDY)
    return weights
