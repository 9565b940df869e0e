"""A task's model from scratch: a preset with new weights, and a tokenizer trained on the task's own texts.

What a checkpoint knows of a language that it has hardly read is worth less than tokens of that language.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.build import from_preset
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import locate
from gpt_finetune.training.arguments import TrainConfig

if TYPE_CHECKING:
    from gpt_finetune.model import GPTConfig

NEW = "new:"
_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


class Base(Protocol):
    """What the configuration of a recipe says of its base."""

    model: str
    overrides: dict[str, Any]
    tokenizer: str | None
    adapt: AdaptConfig
    train: TrainConfig


def find_base(config: Base, texts: Callable[[], Iterable[str]]) -> str:
    """Return where the base lies.

    Args:
        config: Of the recipe. Its `model` is a folder or Hub id, the name of a packaged model, or `new:` and the name
            of a preset, whose fields `overrides` replaces, and whose weights `train.seed` draws.
        texts: Returns the training texts, from which a new model's tokenizer is made.

    Returns:
        A folder or Hub id; a new model's folder lasts as long as the process.

    Raises:
        InputError: There is no such preset, or the sections do not fit a new model, or not a checkpoint.
    """
    if not config.model.startswith(NEW):
        if config.overrides:
            problem = f"model={config.model} is a checkpoint, and its architecture is what it is"
            raise InputError("overrides", config.overrides, problem, f"Leave them out, or give model={NEW}PRESET")
        return locate(config.model)
    planned = _architecture(config)
    adapt = config.adapt
    if adapt.method != "full" or adapt.quantization != "none":
        value = adapt.method if adapt.method != "full" else adapt.quantization
        raise InputError("adapt", value, "a new model has nothing yet to be adapted", "Set adapt.method=full")
    if config.tokenizer is not None:
        raise InputError("tokenizer", config.tokenizer, "a new model gets a tokenizer of its own", "Leave it out")
    from transformers import set_seed

    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    made = train_tokenizer(iter(texts()), TokenizerConfig(vocab_size=planned.vocab_size))
    ids = {name: getattr(made, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    set_seed(config.train.seed)
    _KEPT.append(tempfile.TemporaryDirectory(prefix="gpt-finetune-"))
    folder = _KEPT[-1].name
    GPTForCausalLM(_architecture(config, vocab_size=len(made), **ids)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def _architecture(config: Base, **fields: Any) -> GPTConfig:
    """Return a new model's architecture, with fields that nothing overrides."""
    name, given = config.model.removeprefix(NEW), {**config.overrides, **fields}
    return from_preset(name, given, ("model", config.model), ("overrides", config.overrides))


def base_facts(name: str, model: Any, adapt: AdaptConfig) -> dict[str, str]:
    """Return what a run's receipt says of its base.

    Args:
        name: The checkpoint, or `new:` and the preset of a new model.
        model: As it was loaded, with the new head, before anything adapts it.
        adapt: The section; where the method leaves an adapter, its base is told by the fingerprint, too.
    """
    from gpt_finetune.adaptation.bases import fingerprint_of

    facts = {"preset": name.removeprefix(NEW)} if name.startswith(NEW) else {"base_model": name}
    if METHODS[adapt.method].peft is not None:
        facts["base_fingerprint"] = fingerprint_of(model)
    return facts | {"method": adapt.method}
