"""A finished encoder-decoder at work, whole or as an adapter: rows in, what it writes of each out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.adaptation.bases import ADAPTER_CONFIG, read_config
from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.merging import load_adapters
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.conversion import find_tokenizer
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.prediction import Predictor, text_of
from gpt_finetune.tasks.seq2seq_model import write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 256  # tokens that are written where the model does not say how many


def load_pair(path: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load an encoder-decoder with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id, or folder of an adapter that a run of ours left.

    Returns:
        The model (a `PeftModel` where there is an adapter) in evaluation mode, and the tokenizer.

    Raises:
        InputError: There is no such model, it has no tokenizer, or the adapter belongs to another base.
    """
    import torch

    folder, base = Path(path), path
    adapted = (folder / ADAPTER_CONFIG).is_file()
    if adapted:
        base = read_config(folder).get("base_model_name_or_path") or ""
        if not base:
            raise InputError(
                "model", path, f"{ADAPTER_CONFIG} names no base", "Write the base's folder or Hub id there"
            )
    tokenizer = find_tokenizer(folder) or find_tokenizer(base)
    if tokenizer is None:
        raise InputError("model", path, "there is no tokenizer with it", "Save one beside it")
    model: Any = load_base(base, AdaptConfig(method="full"))
    if adapted:
        model = load_adapters(model, {"adapter": folder})
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def load_writer(path: str, text_column: str) -> Predictor:
    """Return what writes of each text another: of each `text` what is `written`.

    Args:
        path: As `load_pair` takes it.
        text_column: Column of the text, where rows have columns.
    """
    model, tokenizer = load_pair(path)
    longest = model.generation_config.max_new_tokens or LONGEST

    def predict(records: Sequence[Record], batch_size: int, max_length: int | None) -> list[dict[str, Any]]:
        texts = [text_of(record, text_column) for record in records]
        positions = model.config.encoder.max_position_embeddings
        limits = (max_length, tokenizer.model_max_length, positions)
        tokenizer.model_max_length = min(limit for limit in limits if limit)
        answers = write(model, tokenizer, texts, longest, batch_size)
        return [{"text": text, "written": answer.text} for text, answer in zip(texts, answers, strict=True)]

    return predict
