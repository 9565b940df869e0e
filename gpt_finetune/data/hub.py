"""Hub data sets as documents, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.readers import Document, Record, column_index, document_of
from gpt_finetune.errors import InputError

ROWS = 256  # rows read at a time


def load_hub(config: SourceConfig, key: str, streaming: bool) -> Any:
    """Load one split of a data set.

    Args:
        config: `path` is `hub:owner/name`.
        key: Dotted config key of the source, for error messages.
        streaming: Read rows over the network instead of downloading the data set first.

    Raises:
        InputError: The data set, its configuration, its split or the network is not there.
    """
    from datasets import load_dataset  # a second of import that only Hub sources need

    try:
        return load_dataset(
            config.path.removeprefix("hub:"),
            config.name,
            split=config.split,
            revision=config.revision,
            streaming=streaming,
        )
    except Exception as error:  # datasets raises a dozen unrelated classes here, and each of them means the same
        reason = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{key}.path",
            config.path,
            f"the Hub data set cannot be loaded ({type(error).__name__}: {reason[0]})",
            "Check owner/name, name, split and revision, and that the Hub can be reached",
        ) from error


def hub_documents(dataset: Any, config: SourceConfig, key: str) -> Iterator[Document]:
    """Read the text column of a loaded data set.

    Raises:
        InputError: The column is missing, or a row of it is not text.
    """
    column = config.text_column
    if column in (dataset.column_names or []):  # a streamed data set may not know its columns before it is read
        dataset = dataset.select_columns([column])
    for record in hub_records(dataset, config):
        column_index(column, list(record.value), f"{key}.text_column")
        yield document_of(record, column)


def hub_records(dataset: Any, config: SourceConfig) -> Iterator[Record]:
    """Read every row of a loaded data set."""
    number = 0
    # By batches: row by row, a streamed data set notices dataloader workers and gives each a part of its own choice.
    for batch in dataset.iter(batch_size=ROWS):
        for row in zip(*batch.values(), strict=True):
            number += 1
            yield Record(dict(zip(batch, row, strict=True)), config.path, f":{number}")


def hub_fingerprint(dataset: Any, config: SourceConfig) -> str:
    """Identify the data: the fingerprint that `datasets` derives from files and options."""
    return f"{config.path} {dataset._fingerprint}"
