"""Foreign checkpoints in: `from_pretrained` of our models reads every dialect as it reads our own format."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.utils import find_adapter_config_file

from gpt_finetune.allocation import release_file
from gpt_finetune.conversion.checking import check_folder, weights_only
from gpt_finetune.conversion.configs import config_from_native, find_dialect, origin_of, quantization_of
from gpt_finetune.conversion.dialects import DIALECTS
from gpt_finetune.conversion.gguf import config_from_gguf, find_gguf, weights_from_gguf
from gpt_finetune.model import GPTConfig, GPTPreTrainedModel

# Where a checkpoint is, as opposed to what to make of it; an adapter's base has a place of its own.
_ACCESS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
_LOCATION = (*_ACCESS, "revision", "subfolder")
# What `from_pretrained` lets the caller change in a config, by the names of ours.
_OVERRIDES = {*GPTConfig.__dataclass_fields__, *GPTConfig.attribute_map, "num_labels", "output_attentions"} - {"dtype"}


def read_foreign_checkpoints() -> None:
    """Make `from_pretrained` of `GPTConfig`, `GPTPreTrainedModel` and its heads accept a checkpoint of any dialect.

    The classes themselves know nothing of this: they travel to the Hub without us.
    """
    GPTConfig.from_pretrained = classmethod(_config_reader(GPTConfig.from_pretrained.__func__))
    GPTPreTrainedModel.from_pretrained = classmethod(_model_reader(GPTPreTrainedModel.from_pretrained.__func__))
    GPTPreTrainedModel._keys_to_ignore_on_load_unexpected = [
        pattern for dialect in DIALECTS.values() for pattern in dialect.ignored
    ]


def _config_reader(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def from_pretrained(cls: type[GPTConfig], pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        native = _foreign_config(pretrained_model_name_or_path, None, kwargs)
        if native is None:
            return load(cls, pretrained_model_name_or_path, **kwargs)
        overrides = {name: value for name, value in kwargs.items() if name not in (*_LOCATION, "gguf_file")}
        content = config_from_native(native).to_dict()
        del content["_name_or_path"]  # written by to_dict, but no field
        return cls.from_dict(content, **overrides)

    return from_pretrained


def _model_reader(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def from_pretrained(
        cls: type[GPTPreTrainedModel],
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        path = pretrained_model_name_or_path
        if path is not None:
            check_folder(Path(path, kwargs.get("subfolder") or ""))
        native = _foreign_config(path, config, kwargs)
        if native is None:
            with weights_only(path):
                return load(cls, path, *model_args, config=config, **kwargs)
        translated = _translate(native, config, kwargs)
        # transformers finds a checkpoint's conversions by the config's model type. Ours is the same for all dialects,
        # so this one instance bears another until the weights are in.
        translated.model_type = _register(native.model_type, cls, translated)
        gguf_file = kwargs.pop("gguf_file", None)
        if gguf_file is None:
            with weights_only(path):
                loaded = load(cls, path, *model_args, config=translated, **kwargs)
        else:  # as weights of no file: what transformers itself reads from a GGUF is neither trainable nor savable
            file = find_gguf(path, gguf_file, **_location(kwargs))
            kwargs["state_dict"] = weights_from_gguf(file, native, kwargs.get("dtype"))
            loaded = load(cls, None, *model_args, config=translated, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if gguf_file is not None:
            model.name_or_path = model.config.name_or_path = str(path)
        release_file(model)
        del model.config.__dict__["model_type"]
        model._weight_conversions = None  # else `save_pretrained` would turn the weights back into the dialect's
        return loaded

    return from_pretrained


def _foreign_config(path: Any, config: Any, kwargs: dict[str, Any]) -> PreTrainedConfig | None:
    """Return the checkpoint's own configuration, or None where the checkpoint is ours or there is nothing to read."""
    if path is None:
        return None
    if isinstance(config, PreTrainedConfig) and not isinstance(config, GPTConfig):
        find_dialect(config.model_type)
        return config
    location = _location(kwargs)
    if kwargs.get("gguf_file") is not None:
        return config_from_gguf(find_gguf(path, kwargs["gguf_file"], **location))
    if isinstance(config, GPTConfig) and config.name_or_path == str(path) and origin_of(config) is None:
        return None  # an Auto class has read it from there
    source = config if isinstance(config, str | os.PathLike) else path
    try:
        content, _ = PreTrainedConfig.get_config_dict(source, **location)
    except OSError:
        content = {}
    if not content and (adapter := find_adapter_config_file(source, **location)):
        base = json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path")
        return _foreign_config(base, config, {name: kwargs[name] for name in _ACCESS if name in kwargs})
    if not content or content.get("model_type") == GPTConfig.model_type:
        return None  # what cannot be read, transformers explains
    find_dialect(content.get("model_type"))
    return AutoConfig.from_pretrained(source, **location)


def _location(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _LOCATION if name in kwargs}


def _translate(native: PreTrainedConfig, config: Any, kwargs: dict[str, Any]) -> GPTConfig:
    """Return our configuration, with the fields that the caller named in `kwargs` taken out of there."""
    translated = copy.deepcopy(config) if isinstance(config, GPTConfig) else config_from_native(native)
    if quantization_of(native) is not None:  # read as the floating-point weights that it stands for
        translated.quantization_config = {**dict(native.quantization_config), "dequantize": True}
    names = _OVERRIDES & kwargs.keys()
    for name in names:
        setattr(translated, name, kwargs.pop(name))
    if names:
        translated.validate_architecture()
    return translated


def _register(name: str, model_class: type[GPTPreTrainedModel], config: GPTConfig) -> str:
    """Tell transformers a dialect's weight conversions; returns the model type that asks for them."""
    key = f"{model_class.__name__} from {name}"
    register_checkpoint_conversion_mapping(key, find_dialect(name).weights(model_class, config), overwrite=True)
    return key
