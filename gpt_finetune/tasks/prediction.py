"""A finished classifier at work: texts in batches of similar length, answers in the order of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gpt_finetune.tasks.config import MULTI, REGRESSION, RowSourceConfig
from gpt_finetune.tasks.features import LabelCollator, TextEncoder
from gpt_finetune.tasks.judging import decide
from gpt_finetune.tasks.labels import Labels, sigmoid, softmax
from gpt_finetune.tasks.sources import column_of, read_rows, text_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_texts(config: RowSourceConfig, column: str) -> tuple[list[str], list[str]]:
    """Return the texts of a source, and where each stands.

    Args:
        config: What to read; a line of a plain-text file is a text, but for empty ones at its end.
        column: Of the text, where rows have columns.

    Raises:
        InputError: A row cannot be used.
    """
    records = list(read_rows(config, "input"))
    while len(records) > 1 and isinstance(records[-1].value, str) and not records[-1].value.strip():
        records.pop()
    found = []
    for record in records:
        value = column_of(record, column, "text_column") if isinstance(record.value, dict) else record.value
        found.append(text_in(value, record.origin))
    return found, [record.origin for record in records]


def predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    texts: Sequence[str],
    origins: Sequence[str],
    batch_size: int,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Say of each text what the model makes of it.

    Args:
        model: A classifier in evaluation mode.
        tokenizer: Its own.
        labels: Its labels.
        texts: The texts.
        origins: File and row of each, for error messages.
        batch_size: Texts a forward pass.
        max_length: Tokens that are kept of a text; None: as many as in training.

    Returns:
        Of each text, in their order, `label` (a name; for several labels the list of those at even odds or better; for
        regression a number) and, but for that, `scores` by name.

    Raises:
        InputError: A text becomes no token.
    """
    logits = score(model, tokenizer, texts, origins, batch_size, max_length)
    decided = decide(labels.problem, logits)
    if labels.problem == REGRESSION:
        return [{"label": value if len(value) > 1 else value[0]} for value in decided.tolist()]
    exact = logits.astype(np.float64)
    odds = (sigmoid if labels.problem == MULTI else softmax)(exact).round(6).tolist()
    return [
        {"label": labels.named(row), "scores": dict(zip(labels.names, scores, strict=True))}
        for row, scores in zip(decided, odds, strict=True)
    ]


def score(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    origins: Sequence[str],
    batch_size: int,
    max_length: int | None = None,
) -> np.ndarray:
    """Return the logits of texts, float32 (N, L); see `predict`."""
    import torch

    limits = (max_length, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    ids, _ = TextEncoder(tokenizer, min(limit for limit in limits if limit))(texts, origins)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = LabelCollator(int(pad), 0)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the longest first: a lack of memory shows at once
    found: dict[int, np.ndarray] = {}
    with torch.no_grad(), tqdm(total=len(ids), desc="texts", delay=2) as bar:
        for begin in range(0, len(order), batch_size):
            some = order[begin : begin + batch_size]
            rows = [{"input_ids": torch.tensor(ids[i]), "labels": torch.tensor([0])} for i in some]
            batch = {name: value.to(model.device) for name, value in collate(rows).items() if name != "labels"}
            found |= dict(zip(some, model(**batch).logits.float().cpu().numpy(), strict=True))
            bar.update(len(some))
    return np.stack([found[i] for i in range(len(ids))])
