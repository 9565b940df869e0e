"""Is this the model that the adapter was trained on? Asked of weights and shapes, not of names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from gpt_finetune.errors import InputError

ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECEIPT = "adapter_config.json", "adapter_model.safetensors", "run.json"

# What PEFT puts around a layer's name, and names of its own weights.
_WRAPPERS = re.compile(r"base_model\.model\.|base_layer\.|original_module\.|token_adapter\.")
_ADDED = re.compile(r"\.(lora_|ia3_|modules_to_save|trainable_tokens)|prompt_encoder|word_embeddings")
# An adapter's weight -> the side of the layer that its shape repeats: (dimension of the weight, side of the layer).
_SHAPES = {"lora_A.weight": (1, "in_features"), "lora_B.weight": (0, "out_features")}
# What a prompt records of the model that it was made for -> where to read it off a configuration.
_PROMPTS: dict[str, dict[str, Callable[[Any], int]]] = {
    "PROMPT_TUNING": {"token_dim": lambda config: config.hidden_size},
    "PREFIX_TUNING": {
        "token_dim": lambda config: config.num_key_value_heads * config.head_dim,
        "num_layers": lambda config: config.num_hidden_layers,
    },
}


def is_encoder_decoder(path: str) -> bool:
    """Tell whether a checkpoint is an encoder-decoder of two models, as recipes/seq2seq.py trains them.

    Args:
        path: Folder or Hub id.

    Raises:
        InputError: Its configuration cannot be read.
    """
    from transformers import PreTrainedConfig

    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return False
    try:
        content, _ = PreTrainedConfig.get_config_dict(path)
        return bool(content.get("model_type") == "encoder-decoder")
    except Exception as error:  # transformers raises many unrelated classes for a config.json that is none
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("model.from_pretrained", path, problem, "Give a checkpoint folder or a Hub id") from None


def whole_class(path: str) -> Any:
    """Return the class that opens a checkpoint with all that it writes with: a language model, or an encoder-decoder.

    Args:
        path: Folder or Hub id.
    """
    import transformers

    import gpt_finetune

    return transformers.EncoderDecoderModel if is_encoder_decoder(path) else gpt_finetune.GPTForCausalLM


def fingerprint_of(model: nn.Module | str | Path) -> str:
    """Hash a base model: names, shapes and values of its weights, whatever precision they are held in on the way.

    Values are hashed as float32, which holds those of 16 bits exactly. Adapters do not count, but a method that has
    changed the base (pissa) or a vocabulary that has grown does: take it before. Of a model with the head of a task,
    only what stands below the head counts: the head is new, or comes with the adapter.

    Args:
        model: A model of ours, with adapters or without, or the folder or Hub id of any that we read. Of a quantised
            one, the weights that it was made from are hashed.

    Raises:
        InputError: The folder holds no model, or a quantised model does not know where it came from.
    """
    if isinstance(model, str | Path):
        model = _load(str(model))
    below = _below_head(model)
    if getattr(model, "is_quantized", False):
        source = getattr(model, "name_or_path", None)
        if not source:
            problem = "it is quantised, and there is no record of its weights before"
            raise InputError("model", type(model).__name__, problem, "Load it from a folder")
        model = _load(str(source))
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(base_weights(model).items()):
        if not name.startswith(below):
            continue
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        for part in parameter.detach().reshape(-1).split(1 << 24):  # 64 MB at once
            digest.update(part.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def check_base(adapter: str | Path, model: nn.Module) -> None:
    """Refuse a base that an adapter was not trained on, before anything is computed with it.

    Args:
        adapter: The adapter's folder; its shapes are compared, and the base's fingerprint where its run recorded it.
        model: The base, as it was loaded.

    Raises:
        InputError: There is no adapter, or it belongs to another model.
    """
    folder = Path(adapter)
    read_config(folder)
    _check_shapes(folder, model)
    recorded = _recorded(folder)
    if recorded is not None and recorded != (found := fingerprint_of(model)):
        problem = f"it was trained on a base with the fingerprint {recorded}, and this base has {found}"
        remedy = "Give the checkpoint that it was trained on; its run.json names it"
        raise InputError("adapter", str(folder), problem, remedy)


def read_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's configuration.

    Raises:
        InputError: There is none.
    """
    try:
        content = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        problem = f"there is no {ADAPTER_CONFIG} to be read in it"
        raise InputError("adapter", str(folder), problem, "Give the folder of an adapter") from None
    return dict(content)


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of an adapter's weights; reads no values.

    Raises:
        InputError: The file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        problem = f"{ADAPTER_WEIGHTS} cannot be read ({error})"
        raise InputError("adapter", str(folder), problem, "Save the adapter again") from None


def _check_shapes(folder: Path, model: nn.Module) -> None:
    """Refuse an adapter whose layers the model does not have, or has in another width."""
    modules = dict(model.named_modules())
    remedy = "Give the checkpoint that it was trained on"
    for name, shape in weight_shapes(folder).items():
        place = _WRAPPERS.sub("", name)
        cut = _ADDED.search(place)
        module_name = place[: cut.start()] if cut else ""
        if not module_name:
            continue  # a prompt stands in no layer: see below
        if module_name not in modules:
            problem = f"it adapts {module_name}, which {type(model).__name__} does not have here"
            raise InputError("adapter", str(folder), problem, remedy)
        module = modules[module_name]
        for ending, (dim, side) in _SHAPES.items():
            width = getattr(module, side, None) if isinstance(module, nn.Linear) else None
            if name.endswith(ending) and width not in (None, shape[dim]):
                problem = f"it adapts {module_name} with {side}={shape[dim]}, and this model has {width}"
                raise InputError("adapter", str(folder), problem, remedy)
    record, config = read_config(folder), getattr(model, "config", None)
    for theirs, ours in _PROMPTS.get(str(record.get("peft_type")), {}).items():
        if record.get(theirs) != (found := ours(config)):
            problem = f"its prompt was made for {theirs}={record.get(theirs)}, and this model has {found}"
            raise InputError("adapter", str(folder), problem, remedy)


def _recorded(folder: Path) -> str | None:
    """Return the base's fingerprint from the run's receipt, beside the adapter or above its checkpoint."""
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        try:
            receipt = json.loads((place / RECEIPT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = (receipt.get("model") or {}).get("base_fingerprint")
        return str(found) if found else None
    return None


def base_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's own parameters by the names that they bear without adapters; a shared one counts once."""
    return {
        _WRAPPERS.sub("", name): parameter for name, parameter in model.named_parameters() if not _ADDED.search(name)
    }


def _below_head(model: nn.Module) -> str:
    """Return how the names begin of what stands below the head of a task; empty where there is none."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    named = any(name.startswith(prefix) for name in base_weights(model))
    return prefix if named and not hasattr(model, "lm_head") else ""


def _load(path: str) -> nn.Module:
    """Load a checkpoint's weights in the precision that they are stored in."""
    from gpt_finetune.packaged import locate

    try:
        where = locate(path)
        opened: nn.Module = whole_class(where).from_pretrained(where, dtype="auto")
        return opened
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = str(error).splitlines()[0]
        raise InputError("model", path, problem, "Give a checkpoint's folder or Hub id") from None
