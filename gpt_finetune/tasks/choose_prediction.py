"""A finished model of multiple choice at work: questions with choices in, the likeliest choice of each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.choosing import CHOOSER, ChoiceCollator, choices_of, encode, join
from gpt_finetune.tasks.heads import load_finished
from gpt_finetune.tasks.labels import softmax
from gpt_finetune.tasks.prediction import Predictor, token_limit
from gpt_finetune.tasks.sources import column_of, text_in

QUESTION, CHOICES = "question", "choices"
LEAST = 8  # tokens in which question and choice have room, as in training


def load_chooser(path: str) -> Predictor:
    """Return what chooses among answers.

    Rows have a text `question` and a list `choices`, of which rows may have different numbers. It says of each both,
    `answer` (the place of the likeliest choice, from 0), `label` (its text) and `scores` (the probability of each, in
    the choices' order). Questions that are too long lose their end.

    Args:
        path: Of the model.
    """
    model, tokenizer, _ = load_finished(path, CHOOSER)

    def predict(records: Sequence[Record], batch_size: int, max_length: int | None) -> list[dict[str, Any]]:
        limit = token_limit(model, tokenizer, max_length)
        if limit < LEAST:
            raise InputError("max_length", limit, "question and choice have no room", f"Give {LEAST} or more")
        asked = [text_in(column_of(each, QUESTION, "the task"), each.origin) for each in records]
        choices = [choices_of(each, CHOICES, "the task") for each in records]
        rows = [
            [join(question, choice, tokenizer, limit) for choice in encode(tokenizer, some)]
            for question, some in zip(encode(tokenizer, asked), choices, strict=True)
        ]
        collate = ChoiceCollator(int(tokenizer.pad_token_id), limit)
        # the longest first: a lack of memory shows at once
        order = sorted(range(len(rows)), key=lambda i: -max(map(len, rows[i])) * len(rows[i]))
        said: dict[int, np.ndarray] = {}
        with torch.no_grad(), tqdm(total=len(rows), desc="rows", delay=2) as bar:
            for begin in range(0, len(order), batch_size):
                some_rows = order[begin : begin + batch_size]
                batch = collate([{"input_ids": rows[i]} for i in some_rows])
                logits = model(**{name: value.to(model.device) for name, value in batch.items()}).logits
                for i, row in zip(some_rows, logits.double().cpu().numpy(), strict=True):
                    said[i] = softmax(row[: len(rows[i])])  # without what fills up rows of fewer choices
                bar.update(len(some_rows))
        return [
            {
                "question": question,
                "choices": list(some),
                "answer": int(said[i].argmax()),
                "label": some[int(said[i].argmax())],
                "scores": said[i].round(6).tolist(),
            }
            for i, (question, some) in enumerate(zip(asked, choices, strict=True))
        ]

    return predict
