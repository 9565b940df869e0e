"""Where a task's rows come from: files, Hub data sets, and files of packaged data sets."""

from __future__ import annotations

from collections.abc import Iterator

from gpt_finetune.data.readers import Document, Record
from gpt_finetune.data.sources import open_records, utf8
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.supervised.config import PACKAGE
from gpt_finetune.supervised.sources import in_package
from gpt_finetune.tasks.config import RowSourceConfig


def read_rows(config: RowSourceConfig, key: str) -> Iterator[Record]:
    """Read every row of a source.

    Args:
        config: What to read.
        key: Dotted config key of the source, for error messages.

    Raises:
        InputError: Nothing is there, or it cannot be read.
    """
    path = config.path
    return open_records(config.as_source(in_package(path, key) if path.startswith(PACKAGE) else None), key)


def column_of(record: Record, name: str, key: str) -> object:
    """Return what a row has in a column.

    Args:
        record: The row.
        name: Of the column.
        key: Dotted config key that names the column, for error messages.

    Raises:
        InputError: The row has no columns, or not this one.
    """
    row = record.value
    if not isinstance(row, dict):
        raise InputError(record.origin, row, "the row has no columns", "Give rows with named columns, such as jsonl's")
    if name not in row:
        problem = f"the row has no column {name!r}, which {key} names"
        raise InputError(record.origin, list(row), problem, did_you_mean(name, map(str, row)))
    return row[name]


def text_in(value: object, origin: str) -> str:
    """Return a row's text.

    Raises:
        InputError: It is no text, or there is nothing in it.
    """
    remedy = "Repair or remove the row"
    if not isinstance(value, str):
        raise InputError(origin, value, f"the text is {type(value).__name__}, not text", remedy)
    utf8(Document(value, origin))
    if not value.strip():
        raise InputError(origin, value, "the text is empty", remedy)
    return value
