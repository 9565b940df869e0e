"""Finished models of tasks at work: rows in, what the model says of each out. Start at `load_predictor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import MULTI, REGRESSION, RowSourceConfig
from gpt_finetune.tasks.features import LabelCollator, TextEncoder
from gpt_finetune.tasks.heads import CLASSIFIER, find_task, labels_of, load_finished
from gpt_finetune.tasks.judging import decide
from gpt_finetune.tasks.labels import sigmoid, softmax
from gpt_finetune.tasks.sources import column_of, read_rows, text_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Says of each row what the model makes of it: (rows, rows a forward pass, tokens of one or None) -> a mapping each
Predictor = Callable[[Sequence[Record], int, int | None], list[dict[str, Any]]]


def load_predictor(path: str, text_column: str) -> Predictor:
    """Return what predicts with a finished model, whatever its task.

    Args:
        path: Folder or Hub id of a model with a head of `PREDICTORS`, or folder of an adapter.
        text_column: Column of the text in rows that have columns, where the task takes texts.

    Raises:
        InputError: There is no such model, or its task is none of these.
    """
    ending = find_task(path)
    if ending not in PREDICTORS:
        problem = f"it is no model of a task, but {ending}"
        remedy = "Train one with recipes/classify.py, tag.py, answer.py, choose.py or seq2seq.py; others: generate.py"
        raise InputError("model", path, problem, remedy)
    return PREDICTORS[ending](path, text_column)


def read_records(config: RowSourceConfig) -> list[Record]:
    """Return the rows of a source; a line of a plain-text file is one, but for empty ones at its end.

    Raises:
        InputError: They cannot be read.
    """
    records = list(read_rows(config, "input"))
    while len(records) > 1 and isinstance(records[-1].value, str) and not records[-1].value.strip():
        records.pop()
    return records


def text_of(record: Record, column: str) -> str:
    """Return the text of a row, or of a line.

    Raises:
        InputError: There is none.
    """
    value = column_of(record, column, "text_column") if isinstance(record.value, dict) else record.value
    return text_in(value, record.origin)


def token_limit(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return how many tokens a row may have: as asked, as in training, as the model has positions."""
    limits = (max_length, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    return min(limit for limit in limits if limit)


def run_rows(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield of each row of tokens its number and logits, rows of similar length together.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        ids: Tokens of each row.
        batch_size: Rows a forward pass.
    """
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = LabelCollator(int(pad), 0)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the longest first: a lack of memory shows at once
    with torch.no_grad(), tqdm(total=len(ids), desc="rows", delay=2) as bar:
        for begin in range(0, len(order), batch_size):
            some = order[begin : begin + batch_size]
            rows = [{"input_ids": torch.tensor(ids[i]), "labels": torch.tensor([0])} for i in some]
            batch = {name: value.to(model.device) for name, value in collate(rows).items() if name != "labels"}
            yield from zip(some, model(**batch).logits.float().cpu().numpy(), strict=True)
            bar.update(len(some))


def load_classifier(path: str, text_column: str) -> Predictor:
    """Return what classifies texts.

    It says of each `text`, `label` (a name; for several labels the list of those at even odds or better; for regression
    a number) and, but for that, `scores` by name. Texts that are too long lose their end.

    Args:
        path: Of the classifier.
        text_column: Column of the text, where rows have columns.
    """
    model, tokenizer, _ = load_finished(path, CLASSIFIER)
    labels = labels_of(model.config)

    def predict(records: Sequence[Record], batch_size: int, max_length: int | None) -> list[dict[str, Any]]:
        texts = [text_of(record, text_column) for record in records]
        limit = token_limit(model, tokenizer, max_length)
        ids, _ = TextEncoder(tokenizer, limit)(texts, [record.origin for record in records])
        found = dict(run_rows(model, tokenizer, ids, batch_size))
        logits = np.stack([found[i] for i in range(len(ids))])
        decided = decide(labels.problem, logits)
        if labels.problem == REGRESSION:
            values = [value if len(value) > 1 else value[0] for value in decided.tolist()]
            return [{"text": text, "label": value} for text, value in zip(texts, values, strict=True)]
        odds = (sigmoid if labels.problem == MULTI else softmax)(logits.astype(np.float64)).round(6).tolist()
        return [
            {"text": text, "label": labels.named(row), "scores": dict(zip(labels.names, scores, strict=True))}
            for text, row, scores in zip(texts, decided, odds, strict=True)
        ]

    return predict


def _load_tagger(path: str, text_column: str) -> Predictor:
    from gpt_finetune.tasks.tag_prediction import load_tagger

    return load_tagger(path, text_column)


def _load_answerer(path: str, text_column: str) -> Predictor:
    from gpt_finetune.tasks.answering import load_answerer

    return load_answerer(path)


def _load_chooser(path: str, text_column: str) -> Predictor:
    from gpt_finetune.tasks.choose_prediction import load_chooser

    return load_chooser(path)


def _load_writer(path: str, text_column: str) -> Predictor:
    from gpt_finetune.tasks.seq2seq_prediction import load_writer

    return load_writer(path, text_column)


# end of the architecture -> what loads its predictor, given path and text column
PREDICTORS: dict[str, Callable[[str, str], Predictor]] = {
    "ForSequenceClassification": load_classifier,
    "ForTokenClassification": _load_tagger,
    "ForQuestionAnswering": _load_answerer,
    "ForMultipleChoice": _load_chooser,
    "EncoderDecoderModel": _load_writer,
    "ForSeq2SeqLM": _load_writer,  # an adapter's
}
