"""Checkpoints out: a model of ours as a genuine gpt2, llama, … that plain transformers loads."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import cached_file

from gpt_finetune.conversion.configs import config_to_native, find_dialect, find_obstacles, origin_of, shortened
from gpt_finetune.conversion.dialects import DIALECTS
from gpt_finetune.errors import InputError
from gpt_finetune.model import GPTConfig

# One of these holds a tokenizer's vocabulary.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export_native(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    dialect: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str = "50GB",
) -> Path:
    """Write a model as a checkpoint of transformers' own, with no code of ours.

    Args:
        model: A GPT, with whichever head; adapters merged.
        folder: Where to; it appears when all is written, or not at all.
        dialect: A key of `DIALECTS`; None takes the first that can express the model: the one that it was loaded
            from, then gpt2, openai-gpt, llama, mistral, qwen3.
        tokenizer: Saved with it; None takes that of the folder that the model was loaded from, if it has one.
        max_shard_size: Largest weight file, such as `2GB`.

    Returns:
        The folder.

    Raises:
        InputError: The folder holds something, the model is not ours, or no dialect can express it: the message
            names the options that stand in the way.
    """
    if getattr(type(model), "config_class", None) is None or type(model).config_class.model_type != "gpt_finetune":
        problem = f"{type(model).__name__} is not a model of gpt_finetune"
        raise InputError("model", type(model).__name__, problem, "Merge adapters first; give a GPTForCausalLM")
    check_is_new(folder)
    name, config = _choose(model.config, dialect)
    native = _native_class(model, name).from_config
    with torch.device("meta"):  # the weights come from the model; nothing is drawn or copied
        exported = native(config)
    try:
        exported.load_state_dict(_native_weights(model, name, exported.base_model_prefix), strict=True, assign=True)
    except RuntimeError as error:
        problem = f"its weights are not those of a {type(exported).__name__}: {' '.join(str(error).split())}"
        raise InputError("model", type(model).__name__, problem, "Merge or remove what was added to it") from None
    exported.tie_weights()
    if getattr(model, "generation_config", None) is not None and exported.can_generate():
        exported.generation_config = copy.deepcopy(model.generation_config)
    if tokenizer is None and Path(model.name_or_path or os.devnull).is_dir():
        tokenizer = find_tokenizer(model.name_or_path)
    with new_folder(folder) as staging:
        exported.save_pretrained(staging, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return Path(folder)


def find_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model's folder or Hub id; None where there is none.

    To be saved beside the converted model, not copied: files that name no class, such as GPT-2's own, are read by the
    model type beside them, which changes. Without a vocabulary transformers would make up an empty tokenizer.
    """
    if not any(cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in VOCABULARY_FILES):
        return None
    return AutoTokenizer.from_pretrained(path)


def check_is_new(folder: str | os.PathLike[str], field: str = "folder") -> None:
    """Refuse a folder that holds something, before anything is computed for it.

    Args:
        folder: Where to write.
        field: What the user calls it.

    Raises:
        InputError: There is something of that name already, other than an empty folder.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(field, str(target), "it exists and is not empty", "Give another one, or remove it")


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write to, which takes its final name when the block ends well and is removed otherwise.

    Raises:
        InputError: See `check_is_new`.
    """
    check_is_new(folder)
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the rename stays on one file system
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        staging = Path(temporary) / target.name
        staging.mkdir()
        yield staging
        staging.replace(target)


def _choose(config: GPTConfig, dialect: str | None) -> tuple[str, PreTrainedConfig]:
    """Return the first dialect that can express the model, with its configuration."""
    if dialect is not None:
        return dialect, config_to_native(config, dialect)
    origin = origin_of(config)
    obstacles = {}
    for name in sorted(DIALECTS, key=lambda name: name != origin):  # stable: the table's order, after the origin
        obstacles[name] = find_obstacles(config, name)
        if not obstacles[name]:
            return name, config_to_native(config, name)
    nearest = sorted(DIALECTS, key=lambda name: len(obstacles[name]))[:3]
    problem = "; ".join(f"{name} cannot express {shortened(obstacles[name])}" for name in nearest)
    remedy = "Change these options, or keep gpt_finetune's own format, which loads anywhere with trust_remote_code"
    raise InputError("dialect", None, f"none can express this model; of the nearest, {problem}", remedy)


def _native_class(model: PreTrainedModel, name: str) -> Any:
    """Return the Auto class of the same head: GPTForCausalLM -> AutoModelForCausalLM."""
    head = type(model).__name__.removeprefix("GPT")
    auto = getattr(transformers, f"Auto{head}" if head == "Model" else f"AutoModel{head}", None)
    if auto is None or transformers.CONFIG_MAPPING[name] not in auto._model_mapping:
        known = "export its base model, model.model, instead"
        raise InputError("model", type(model).__name__, f"{name} has no such head in transformers", known.capitalize())
    return auto


def _native_weights(model: PreTrainedModel, name: str, prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights by the dialect's names and shapes; a dialect that has ours shares their memory."""
    conversions = find_dialect(name).weights(type(model), model.config, prefix)
    return revert_weight_conversion(
        SimpleNamespace(_weight_conversions=conversions, config=model.config), model.state_dict()
    )
