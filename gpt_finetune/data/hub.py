"""Hub data sets as documents, through `datasets`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.readers import Document, Record, column_index, document_of
from gpt_finetune.data.reading import Place, Reading
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


def hub_documents(dataset: Any, config: SourceConfig, key: str) -> Reading:
    """Read the text column of a loaded data set.

    Raises:
        InputError: The column is missing, or a row of it is not text.
    """
    column = config.text_column
    if column in (dataset.column_names or []):  # a streamed data set may not know its columns before it is read
        dataset = dataset.select_columns([column])
    return HubReading(dataset, config, key)


class HubReading(Reading):
    """The text column of a loaded data set; where it is streamed, the data set itself says where it stands.

    Args:
        dataset: The data set.
        config: Its text column.
        key: Dotted config key of the source, for error messages.
    """

    def __init__(self, dataset: Any, config: SourceConfig, key: str) -> None:
        super().__init__(self._read())
        self.dataset, self.config, self.key = dataset, config, key
        self._state: Any = None  # of the data set, before the rows that it gave last
        self._before = 0  # rows before these

    def place(self) -> Place:
        """Return the data set's own state, and how many rows were taken since."""
        return {"state": self._state, "before": self._before, "rows": self._rows}

    def go_on(self, place: Place) -> None:
        """Continue where another reading of a streamed data set stood; fewer than `ROWS` rows are read again."""
        self._state, self._before, self._rows = place["state"], place["before"], place["rows"]
        if self._state is not None:
            self.dataset = copy.copy(self.dataset)  # the next epoch begins at the beginning
            self.dataset.load_state_dict(self._state)

    def _read(self) -> Iterator[Document]:
        skip, following = self._rows, None
        for number, rows in enumerate(_batches(self.dataset)):
            if number:
                self._state, self._before, self._rows = following, self._before + self._rows, 0
            for i, value in enumerate(rows[skip:], start=self._before + skip + 1):
                record = Record(value, self.config.path, f":{i}")
                column_index(self.config.text_column, list(value), f"{self.key}.text_column")
                yield document_of(record, self.config.text_column)
            skip = 0
            following = self.dataset.state_dict() if hasattr(self.dataset, "state_dict") else None


def hub_records(dataset: Any, config: SourceConfig) -> Iterator[Record]:
    """Read every row of a loaded data set."""
    rows = (row for batch in _batches(dataset) for row in batch)
    return (Record(row, config.path, f":{number}") for number, row in enumerate(rows, start=1))


def _batches(dataset: Any) -> Iterator[list[dict[str, Any]]]:
    # Row by row, a streamed data set notices dataloader workers and gives each a part of its own choice.
    for batch in dataset.iter(batch_size=ROWS):
        yield [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def hub_fingerprint(dataset: Any, config: SourceConfig) -> str:
    """Identify the data: the fingerprint that `datasets` derives from files and options."""
    return f"{config.path} {dataset._fingerprint}"
