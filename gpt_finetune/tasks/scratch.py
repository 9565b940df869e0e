"""A task's model from scratch: a preset with new weights, and a tokenizer trained on the task's own texts.

What a checkpoint knows of a language that it has hardly read is worth less than tokens of that language.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import locate
from gpt_finetune.presets import preset

NEW = "new:"
_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def find_base(
    model: str, tokenizer: str | None, adapt: AdaptConfig, seed: int, texts: Callable[[], Iterable[str]]
) -> str:
    """Return where the base lies.

    Args:
        model: Folder or Hub id, the name of a packaged model, or `new:` and the name of a preset.
        tokenizer: Of the recipe.
        adapt: The section; a model of `new:` must learn as a whole.
        seed: Of the new weights.
        texts: Returns the training texts, from which a new model's tokenizer is made.

    Returns:
        A folder or Hub id; a new model's folder lasts as long as the process.

    Raises:
        InputError: There is no such preset, or the sections do not fit a new model.
    """
    if not model.startswith(NEW):
        return locate(model)
    try:
        vocab_size = preset(model.removeprefix(NEW)).vocab_size
    except InputError as error:
        raise InputError("model", model, error.problem, error.remedy) from None
    if adapt.method != "full" or adapt.quantization != "none":
        value = adapt.method if adapt.method != "full" else adapt.quantization
        raise InputError("adapt", value, "a new model has nothing yet to be adapted", "Set adapt.method=full")
    if tokenizer is not None:
        raise InputError("tokenizer", tokenizer, "a new model gets a tokenizer of its own", "Leave it out")
    from transformers import set_seed

    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    made = train_tokenizer(iter(texts()), TokenizerConfig(vocab_size=vocab_size))
    ids = {name: getattr(made, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    set_seed(seed)
    _KEPT.append(tempfile.TemporaryDirectory(prefix="gpt-finetune-"))
    folder = _KEPT[-1].name
    GPTForCausalLM(preset(model.removeprefix(NEW), vocab_size=len(made), **ids)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


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
