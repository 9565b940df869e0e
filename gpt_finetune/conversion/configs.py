"""Configurations, in and out: transformers' own to `GPTConfig`, and back."""

from __future__ import annotations

import copy
from types import NoneType
from typing import Any, get_args

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from gpt_finetune.conversion.dialects import DIALECTS, Dialect
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.model import GPTConfig

# Fields that every config of transformers has and that mean the same everywhere.
_SHARED = ("dtype", "id2label", "label2id", "problem_type")
# Fields that belong to a file or a class, not to the model.
_VOLATILE = frozenset(
    {"_name_or_path", "architectures", "auto_map", "model_type", "quantization_config", "transformers_version"}
)
# Ours that the computation of a finished model does not depend on.
_NOT_ARCHITECTURE = frozenset({*PreTrainedConfig.__dataclass_fields__, "auto_map", "scale_residual_init", "use_cache"})
# Quantized weights that transformers can turn back while it loads them, whatever the model's class.
_DEQUANTIZED = ("mxfp4",)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")
# Where a GPTConfig keeps what it has no field for, so that an export can write it back.
_ORIGIN = "native"


def find_dialect(name: Any) -> Dialect:
    """Return the dialect of a model type.

    Raises:
        InputError: There is none.
    """
    if name not in DIALECTS:
        problem = "gpt_finetune does not read or write this architecture"
        raise InputError("model_type", name, problem, did_you_mean(str(name), DIALECTS))
    return DIALECTS[name]


def config_from_native(config: PreTrainedConfig) -> GPTConfig:
    """Translate a configuration of transformers into ours.

    What has no field here (GPT-2's `summary_type`, say) does not change logits; where it differs from its default,
    it is kept in `task_specific_params`, together with the dialect's name, and `config_to_native` puts it back.

    Args:
        config: A `GPT2Config`, `LlamaConfig`, … of a model type in `DIALECTS`.

    Raises:
        InputError: The model type is unknown, or a field has a value that GPTConfig cannot express.
    """
    name = config.model_type
    ours = _read(name, config)
    plain = _write(name, ours).to_dict()
    rest = {
        key: value
        for key, value in config.to_dict().items()
        if key not in _VOLATILE and not (key in plain and plain[key] == value)
    }
    ours.task_specific_params = {_ORIGIN: {"model_type": name, **rest}}
    return ours


def config_to_native(config: GPTConfig, name: str) -> PreTrainedConfig:
    """Translate a configuration of ours into one of transformers.

    Args:
        config: Ours.
        name: The dialect.

    Raises:
        InputError: The dialect is unknown, or cannot express an option; the message names all such options.
    """
    if obstacles := find_obstacles(config, name):
        problem = f"this architecture cannot express {shortened(obstacles)}"
        raise InputError("dialect", name, problem, "Change these options, or keep gpt_finetune's own format")
    kept = {key: copy.deepcopy(value) for key, value in _origin(config).items() if key != "model_type"}
    if not kept or origin_of(config) != name:
        return _write(name, config)
    # The config may have been changed since it was read: what was kept must not say otherwise.
    restored = _write(name, config, kept)
    if not _differences(config, _read(name, restored)):
        return restored
    spoken = {*find_dialect(name).fields.values(), *_written(name, config)}
    return _write(name, config, {key: value for key, value in kept.items() if key not in spoken})


def find_obstacles(config: GPTConfig, name: str) -> list[str]:
    """Return the options of a configuration that a dialect cannot express, as `option=value (only other value)`.

    Raises:
        InputError: The dialect is unknown.
    """
    find_dialect(name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is only tried need not be warned of
    try:
        return _differences(config, _read(name, _write(name, config)))
    except Exception as error:  # their own check of their own fields
        return [" ".join(str(error.__cause__ or error).split())]
    finally:
        logging.set_verbosity(verbosity)


def shortened(obstacles: list[str]) -> str:
    """Return the first obstacles as text, and how many there are besides."""
    return ", ".join(obstacles[:3]) + (f" and {len(obstacles) - 3} more" if len(obstacles) > 3 else "")


def origin_of(config: GPTConfig) -> str | None:
    """Return the dialect that a configuration was translated from, if any."""
    return _origin(config).get("model_type")


def _origin(config: GPTConfig) -> dict[str, Any]:
    return (getattr(config, "task_specific_params", None) or {}).get(_ORIGIN, {})


def _read(name: str, config: PreTrainedConfig) -> GPTConfig:
    dialect = find_dialect(name)
    for theirs, required in dialect.requires.items():
        wanted = required(config) if callable(required) else required
        if (value := getattr(config, theirs, wanted)) != wanted:
            problem = f"GPTConfig can express only {wanted!r}"
            raise InputError(f"{name}.{theirs}", value, problem, "Use transformers' own class for this checkpoint")
    _check_quantization(name, config)
    values: dict[str, Any] = {key: copy.deepcopy(getattr(config, key)) for key in _SHARED}
    for ours, theirs in dialect.fields.items():
        value = copy.deepcopy(getattr(config, theirs))
        if ours in dialect.synonyms:
            if value not in dialect.synonyms[ours]:
                remedy = f"It must be one of {', '.join(map(str, dialect.synonyms[ours]))}"
                raise InputError(f"{name}.{theirs}", value, "GPTConfig has nothing like it", remedy)
            value = dialect.synonyms[ours][value]
        values[ours] = value
    for ours in _DROPOUTS:
        values[ours] = float(values.get(ours) or 0)  # some write 0, some null
    for ours in _IDS:
        values[ours] = _inside(values[ours], values["vocab_size"])
    for part in dialect.read:
        values.update(part(config))
    try:
        return GPTConfig(**{**values, **dialect.constants})
    except Exception as error:  # @strict wraps what it finds in errors of its own
        remedy = "Use transformers' own class for this checkpoint"
        raise InputError(name, "…", str(error.__cause__ or error), remedy) from None


def _check_quantization(name: str, config: PreTrainedConfig) -> None:
    method = quantization_of(config)
    if method is not None and method not in _DEQUANTIZED:
        problem = f"such weights cannot be translated; of quantized ones, {', '.join(_DEQUANTIZED)} can"
        remedy = "Use the checkpoint that it was made from, or save what transformers' own class dequantizes"
        raise InputError(f"{name}.quantization_config.quant_method", method, problem, remedy)


def quantization_of(config: PreTrainedConfig) -> str | None:
    """Return how the weights of a checkpoint are quantized, if they are."""
    quantization = getattr(config, "quantization_config", None)
    return dict(quantization).get("quant_method", "unknown") if quantization else None


def _inside(ids: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    """Drop ids that no token has: -1 for none, or a default that was left in a config with a smaller vocabulary."""
    if isinstance(ids, list):
        return [token_id for token_id in ids if 0 <= token_id < vocab_size] or None
    return ids if ids is not None and 0 <= ids < vocab_size else None


def _write(name: str, config: GPTConfig, more: dict[str, Any] | None = None) -> PreTrainedConfig:
    dialect = find_dialect(name)
    values: dict[str, Any] = {key: copy.deepcopy(getattr(config, key)) for key in _SHARED}
    for ours, theirs in dialect.fields.items():
        value = copy.deepcopy(getattr(config, ours))
        spellings = dialect.synonyms.get(ours)
        if spellings is not None:
            if value not in spellings.values():
                continue  # their default stands, and reads back as something else
            value = next(spelling for spelling, meaning in spellings.items() if meaning == value)
        elif value is None and not _may_be_none(name, theirs):
            continue
        values[theirs] = value
    return AutoConfig.for_model(name, **{**values, **_written(name, config), **(more or {})})


def _may_be_none(name: str, theirs: str) -> bool:
    declared = CONFIG_MAPPING[name].__dataclass_fields__.get(theirs)
    return declared is None or NoneType in get_args(declared.type)


def _written(name: str, config: GPTConfig) -> dict[str, Any]:
    """Return their fields that are not in the table of fields."""
    return {key: value for part in find_dialect(name).write for key, value in part(config).items()}


def _differences(config: GPTConfig, other: GPTConfig) -> list[str]:
    """Return what `other` does not express, as `name=value (only other value)`."""
    names = [name for name in GPTConfig.__dataclass_fields__ if name not in _NOT_ARCHITECTURE]
    pairs = [(name, _value(config, name), _value(other, name)) for name in names]
    return [f"{name}={ours!r} (only {theirs!r})" for name, ours, theirs in pairs if ours != theirs]


def _value(config: GPTConfig, name: str) -> Any:
    """Return a field; of rotary positions, the whole of a head is the same as no share of it."""
    value = getattr(config, name)
    if name != "rope_parameters" or value is None or value.get("partial_rotary_factor") != 1:
        return value
    return {key: part for key, part in value.items() if key != "partial_rotary_factor"}
