"""A finished tagger at work: words or plain texts in, a tag for each word out, however long a text is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_finetune.data.readers import Record
from gpt_finetune.metrics.sequences import entities_of
from gpt_finetune.tasks.config import SINGLE
from gpt_finetune.tasks.heads import TAGGER, load_finished
from gpt_finetune.tasks.labels import Labels, softmax
from gpt_finetune.tasks.prediction import Predictor, run_rows, text_of, token_limit
from gpt_finetune.tasks.tag_features import WordEncoder
from gpt_finetune.tasks.tag_reading import is_iob2, joiner_of, split_text, words_in
from gpt_finetune.tasks.tagging import outside

WORDS = "words"


def load_tagger(path: str, text_column: str) -> Predictor:
    """Return what tags words.

    Rows have a list `words`, or else a text, which spaces part into words, or where there are none its characters. It
    says of each row `words`, `tags` and `scores` (the probability of each tag), and of names in a text (IOB2)
    `entities` with type, text, first and last word.

    How words are joined, and which token bears their tag, the run's receipt says; where a model has none, the texts and
    the defaults do.

    Args:
        path: Of the tagger.
        text_column: Column of the text, where rows have columns and no words.
    """
    model, tokenizer, task = load_finished(path, TAGGER)
    labels = Labels(SINGLE, tuple(model.config.id2label[i] for i in range(model.config.num_labels)))

    def predict(records: Sequence[Record], batch_size: int, max_length: int | None) -> list[dict[str, Any]]:
        given = [_given(record, text_column) for record in records]
        joiner = task.get("joiner")
        if joiner is None:
            joiner = joiner_of([text for each in given for text in (each if isinstance(each, list) else [each])])
        apart = bool(task.get("characters"))
        words = [_words(each, joiner, apart) for each in given]
        encoder = WordEncoder(
            tokenizer,
            joiner,
            token_limit(model, tokenizer, max_length),
            int(task.get("overlap", 0)),
            str(task.get("label_subword", "last")),
            causal=getattr(model.config, "is_causal", True),
        )
        windows = [
            (number, window)
            for number, tokens in enumerate(encoder.encode(words))
            for window in encoder.windows(tokens)[0]
        ]
        tags = [np.full(len(some), outside(labels)) for some in words]
        scores = [np.ones(len(some)) for some in words]
        for i, logits in run_rows(model, tokenizer, [window.ids for _, window in windows], batch_size):
            number, window = windows[i]
            odds = softmax(logits[window.columns].astype(np.float64))
            tags[number][window.words] = odds.argmax(-1)
            scores[number][window.words] = odds.max(-1)
        return [_said(labels, joiner, *each) for each in zip(words, tags, scores, strict=True)]

    return predict


def _given(record: Record, text_column: str) -> str | list[str]:
    """Return a row's words, else its text."""
    if isinstance(record.value, dict) and WORDS in record.value:
        return words_in(record.value[WORDS], record.origin)
    return text_of(record, text_column)


def _words(given: str | list[str], joiner: str, apart: bool) -> list[str]:
    if isinstance(given, str):
        return split_text(given, joiner)
    return [unit for word in given for unit in split_text(word, "")] if apart else given


def _said(labels: Labels, joiner: str, words: list[str], tags: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    names = [labels.names[tag] for tag in tags.tolist()]
    said: dict[str, Any] = {"words": words, "tags": names, "scores": scores.round(6).tolist()}
    if is_iob2(labels.names):
        spans = sorted(entities_of(names), key=lambda span: span[1:])
        said["entities"] = [
            {"type": kind, "text": joiner.join(words[first : last + 1]), "first": first, "last": last}
            for kind, first, last in spans
        ]
    return said
