"""A model for use, whichever way it was tuned: whole, or as an adapter on the base that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.adaptation.bases import ADAPTER_CONFIG, is_encoder_decoder, read_config
from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.merging import load_adapters
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.conversion import find_tokenizer
from gpt_finetune.conversion.checking import check_folder
from gpt_finetune.errors import InputError
from gpt_finetune.generation import load
from gpt_finetune.packaged import locate
from gpt_finetune.supervised.templates import stop_at_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tuned(
    path: str, *, trust_remote_code: bool = False, quantize: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id of a model, name of a packaged one, or folder of an adapter.
        trust_remote_code: Run code that comes with a model that is not one of ours.
        quantize: A name of `gpt_finetune.quantization.QUANTIZE`, for a whole model.

    Returns:
        The model (a `PeftModel` where there is an adapter) in evaluation mode, and the tokenizer.

    Raises:
        InputError: There is no such model, it has no tokenizer, the adapter belongs to another base, or it is to be
            quantised unmerged.
    """
    import torch

    folder = Path(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        check_folder(locate(path))
        _refuse_pair(path, locate(path))
        return load(locate(path), trust_remote_code=trust_remote_code, quantize=quantize)
    if quantize is not None:
        problem = "an adapter's base cannot be quantised below it"
        raise InputError("quantize", quantize, problem, "Merge them first: recipes/merge.py")
    base = read_config(folder).get("base_model_name_or_path")
    if not base:
        problem = f"{ADAPTER_CONFIG} names no base"
        raise InputError("model", path, problem, "Write the base's folder or Hub id there")
    _refuse_pair(path, locate(base))
    tokenizer = find_tokenizer(folder) or find_tokenizer(base)
    if tokenizer is None:
        raise InputError("model", path, "neither the adapter nor its base has a tokenizer", "Save one with the adapter")
    model = load_adapters(load_base(base, AdaptConfig()), {"adapter": folder})
    stop_at_turns(model, tokenizer)
    return (model.to(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else model), tokenizer


def _refuse_pair(given: str, where: str) -> None:
    """Refuse an encoder-decoder, which does not go on with a text but writes another."""
    if Path(where).is_dir() and is_encoder_decoder(where):
        problem = "it is an encoder-decoder, which reads one text and writes another"
        raise InputError("model", given, problem, "Give its inputs to recipes/predict.py")
