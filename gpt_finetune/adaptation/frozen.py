"""Frozen weights in bfloat16, where training rounds them to it for every product anyway."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gpt_finetune.adaptation.bases import base_weights
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.allocation import release_file
from gpt_finetune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NARROWED = "narrowed_weights"  # attribute of the base that holds the names of the weights that were rounded
# Ways in which LoRA starts that leave the base's weights as they are; all others move them.
_HARMLESS_STARTS = {"True", "False", "gaussian", "eva", "orthogonal"}


def frozen_dtype(config: AdaptConfig, bf16: bool | None) -> torch.dtype:
    """Return the precision in which frozen weights are to be kept.

    Args:
        config: The section.
        bf16: Whether training computes in bfloat16; None where nobody says, which to `auto` is no.

    Raises:
        InputError: bfloat16 is asked for, and training computes in another precision, or the method does not allow it.
    """
    problem = _obstacle(config)
    if config.frozen_dtype != "bfloat16":
        fits = problem is None and bf16 and not _spread()
        return torch.bfloat16 if config.frozen_dtype == "auto" and fits else torch.float32
    if problem is not None:
        raise InputError("adapt.frozen_dtype", "bfloat16", problem, "Use auto, or another method, such as lora")
    if bf16 is False:
        problem = "training computes in another precision, and would see rounded weights"
        raise InputError("adapt.frozen_dtype", "bfloat16", problem, "Set train.precision=bfloat16, or use auto")
    return torch.bfloat16


def _obstacle(config: AdaptConfig) -> str | None:
    """Say what is in the way of rounding the weights of the base; None if nothing is."""
    if not METHODS[config.method].rounds:
        return f"{config.method} trains or moves weights of the base, or keeps its own in their precision"
    if config.quantization != "none":
        return "the base is quantised, which makes it smaller still"
    options = config.options
    if options.get("use_dora") or str(options.get("init_lora_weights", True)) not in _HARMLESS_STARTS:
        return "adapt.options make LoRA start by moving or measuring the weights of the base"
    return None


def _spread() -> bool:
    """Tell whether an engine spreads the weights over processes, which wants all of them in one precision."""
    engines = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "false").lower() == "true" for name in engines)


def narrow(adapted: nn.Module) -> None:
    """Round the frozen weights of linear layers and embeddings to bfloat16, and have the model run under autocast.

    Under autocast each product rounds both factors to bfloat16, so that linear layers, a tied head among them, compute
    what they computed before, without a cast of every weight in every step and without the wider copy. What is rounded
    that was not are vectors of embeddings on their way in. They come out as float32 still, and the stream is kept in
    what it was kept in. Norms, learned positions, experts, and tables with trained rows keep their precision.

    Evaluation, generation and whatever else calls the model compute under autocast, too; see `restore`.

    Args:
        adapted: A `PeftModel`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = adapted.get_base_model()
    names = {id(parameter): name for name, parameter in base_weights(adapted).items()}
    kept = {id(parameter) for parameter in _kept(adapted)}
    narrowed = []
    for module in adapted.modules():
        if type(module) not in (nn.Linear, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) in names and id(parameter) not in kept and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)  # the object stays, and so do ties
                narrowed.append(names[id(parameter)])
        if type(module) is nn.Embedding and module.weight.dtype == torch.bfloat16:
            module.register_forward_hook(_widen)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            # PEFT would widen each input to the adapter's own precision, and autocast round it back
            module.cast_input_dtype_enabled = False
    release_file(base)
    setattr(base, NARROWED, narrowed)
    base.forward = _autocast(base, base.forward)


def _kept(adapted: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that stay as they are: trained ones, and those that other modules read as well."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils import ModulesToSaveWrapper

    for module in adapted.modules():
        special = type(module) not in (nn.Linear, nn.Embedding)
        # PEFT copies rows into the one's table; the other's first weights, which a new head has in no file, stay whole
        whole = isinstance(module, TrainableTokensLayer | ModulesToSaveWrapper)
        for parameter in module.parameters(recurse=whole):
            if whole or special or parameter.requires_grad or type(parameter) is not nn.Parameter:
                yield parameter


def _widen(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Return an embedding's vectors in float32, as they would come from a table in float32."""
    return output.float()


def _autocast(model: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that is computed in bfloat16, whoever calls it."""

    @functools.wraps(forward)
    def computed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            return forward(*args, **kwargs)

    return computed


def restore(model: PreTrainedModel) -> None:
    """Give a model its weights in float32 back, as they were before `narrow`; others are left as they are.

    They are read again from where the model came from. Of one that came from no file, the rounded ones are kept.

    Args:
        model: A base, with adapters or without.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = base.__dict__.pop(NARROWED, None)
    if names is None:
        return
    import transformers

    from gpt_finetune.packaged import locate

    del base.forward
    for module in model.modules():
        module._forward_hooks = type(module._forward_hooks)(
            (key, hook) for key, hook in module._forward_hooks.items() if hook is not _widen
        )
        module.__dict__.pop("cast_input_dtype_enabled", None)
    rounded = base_weights(model)
    source: dict[str, torch.Tensor] = {}
    if base.name_or_path:
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # it would report a new head as missing, which is not read
        try:
            found = type(base).from_pretrained(locate(base.name_or_path), config=base.config, dtype="float32")
        finally:
            transformers.logging.set_verbosity(level)
        source = dict(found.named_parameters())
    else:
        log.warning("the weights before they were rounded to bfloat16 are in no file: they stay rounded")
    for name in names:
        rounded[name].data = source.get(name, rounded[name]).data.to(rounded[name].device, torch.float32)
