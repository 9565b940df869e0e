"""Text classification: rows become features, and what is held out is measured by `judging`.

The head is that of Radford et al. 2018 (GPT-1), section 3.2: a linear layer over the last token of a text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import REGRESSION, SINGLE, ClassifyDataConfig
from gpt_finetune.tasks.features import LabelCollator, LabelledRows, TextEncoder
from gpt_finetune.tasks.judging import measure
from gpt_finetune.tasks.labels import LabelReader, Labels
from gpt_finetune.tasks.ledger import TaskLedger
from gpt_finetune.tasks.rows import TaskRow, read_all
from gpt_finetune.tasks.sources import column_of, text_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PROMPTS = ("prompt_tuning", "prefix_tuning")


@dataclass
class PreparedTask:
    """Everything that training needs to know about its rows.

    Args:
        tokenizer: The model's, that can pad.
        labels: What there is to be told apart.
        train: Rows to train on.
        validation: Held-out rows, one a text, numbered.
        texts: Rows as they were read, of each side of the split.
        targets: Labels of each side, encoded.
        ledger: Where every row and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        collate: Stacks rows into a batch.
        lengths: Tokens of each text, of each side, before any is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: Labels
    train: LabelledRows
    validation: LabelledRows
    texts: dict[str, list[TaskRow]]
    targets: dict[str, np.ndarray]
    ledger: TaskLedger
    fingerprint: str
    collate: LabelCollator
    lengths: dict[str, list[int]]

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out texts."""
        return sum(len(row.text.encode()) for row in self.texts["validation"])

    def settings(self) -> dict[str, Any]:
        """Return what the model's configuration is to say of the task."""
        return self.labels.settings() | {"pad_token_id": self.collate.pad_id}

    def measure(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the figures of what the model says of the held-out texts, N times (L,)."""
        return measure(self.labels.problem, np.stack(logits), self.targets["validation"])


def prepare_task(config: ClassifyDataConfig, tokenizer: PreTrainedTokenizerBase) -> PreparedTask:
    """Turn sources into rows with labels: read, clear of duplicates, split, tokenize, cut, pack.

    Args:
        config: What to read and how.
        tokenizer: From `heads.padded_tokenizer`.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    config.validate()
    reader = LabelReader(config.problem_type, config.label_column)
    rows = read_all(config, _columns(config, reader))
    given = len(config.validation)
    kept = [row for row in rows if row.fate in ("train", "validation")]
    labels = reader.fit([row.target for row in kept if row.source >= given])
    for row in (row for row in kept if row.source < given):
        labels.require(row.target, row.origin)
    if len({row.target for row in rows if row.fate == "train"}) < 2:
        problem = "all rows that are left to train on after the split have one label"
        raise InputError("data.label_column", config.label_column, problem, "Add rows, or change data.seed")
    ids, sizes = TextEncoder(tokenizer, config.max_length)([r.text for r in rows], [r.origin for r in rows])
    ledger = TaskLedger([source.path for source in [*config.validation, *config.sources]])
    for row, tokens, size in zip(rows, ids, sizes, strict=True):
        if config.strict and size > config.max_length and row in kept:
            problem = f"the text has {size} tokens, and data.strict=true refuses such"
            raise InputError(row.origin, row.text, problem, f"Set data.max_length={size} or more, or shorten it")
        ledger.add(row.source, row.fate, size, len(tokens))
    ledger.check()
    made: dict[str, LabelledRows] = {}
    texts, targets, lengths = {}, {}, {}
    for fate in ("train", "validation"):
        mine = [i for i, row in enumerate(rows) if row.fate == fate]
        if fate == "validation":  # the longest first, so that a lack of memory shows at once
            mine.sort(key=lambda i: -len(ids[i]))
        texts[fate], lengths[fate] = [rows[i] for i in mine], [sizes[i] for i in mine]
        targets[fate] = labels.encode([rows[i].target for i in mine])
        width = config.max_length if config.packing and fate == "train" else None
        made[fate] = LabelledRows([ids[i] for i in mine], targets[fate], width, numbered=fate == "validation")
    if config.packing:
        ledger.packed = made["train"].tokens
        ledger.padding = len(made["train"]) * config.max_length - ledger.packed
    for line in ledger.lines():
        log.info("%s", line)
    _warn(labels, targets)
    collate = LabelCollator(int(tokenizer.pad_token_id), config.max_length)
    key = _fingerprint(labels, made)
    return PreparedTask(
        tokenizer, labels, made["train"], made["validation"], texts, targets, ledger, key, collate, lengths
    )


def training_texts(config: ClassifyDataConfig) -> Iterator[str]:
    """Yield the texts of the rows to train on.

    Raises:
        InputError: As `prepare_task`.
    """
    rows = read_all(config, _columns(config, LabelReader(config.problem_type, config.label_column)))
    yield from (row.text for row in rows if row.fate == "train")


def check_method(adapt: AdaptConfig, data: ClassifyDataConfig) -> None:
    """Refuse what cannot work together, before any compute.

    Raises:
        InputError: Vectors in front of the input would be in front of the first text of a packed row only.
    """
    if adapt.method in PROMPTS and data.packing:
        problem = f"{adapt.method} puts vectors in front of a row, not of each text in it"
        raise InputError("data.packing", True, problem, "Set data.packing=false, or use lora")


def _columns(config: ClassifyDataConfig, reader: LabelReader) -> Callable[[Record], tuple[str, Any]]:
    """Return what makes text and label of a row."""

    def read(record: Record) -> tuple[str, Any]:
        text = text_in(column_of(record, config.text_column, "data.text_column"), record.origin)
        return text, reader(column_of(record, config.label_column, "data.label_column"), record.origin)

    return read


def _warn(labels: Labels, targets: Mapping[str, np.ndarray]) -> None:
    if labels.problem == REGRESSION:
        return
    count = len(labels.names)
    texts = np.bincount(targets["train"], minlength=count) if labels.problem == SINGLE else targets["train"].sum(0)
    for name, seen in zip(labels.names, texts, strict=True):
        if not seen:
            log.warning("The label %r stands on held-out texts only, and cannot be learned.", name)


def _fingerprint(labels: Labels, made: Mapping[str, LabelledRows]) -> str:
    state = xxhash.xxh3_128(repr(labels).encode())
    for rows in made.values():
        for part in (rows.ids, rows.starts, np.ascontiguousarray(rows.labels), str(rows.width).encode()):
            state.update(bytes(part))
            state.update(b"|")
    return state.hexdigest()
