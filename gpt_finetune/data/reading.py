"""Reading a source with a finger in it: where it stands, and going on from there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.readers import Document, read_file
from gpt_finetune.errors import InputError

Place = dict[str, Any]  # plain values, fit for JSON


class Reading(Iterator[Document]):
    """A source's documents in their order. This one counts them, and passes over those that were read before.

    Args:
        documents: The documents, from the first one on.
    """

    def __init__(self, documents: Iterator[Document]) -> None:
        self._documents, self._rows = documents, 0

    def __next__(self) -> Document:
        document = next(self._documents)
        self._rows += 1
        return document

    def place(self) -> Place:
        """Return where the next document stands."""
        return {"rows": self._rows}

    def go_on(self, place: Place) -> None:
        """Continue where another reading of the same source stood. Nothing is opened before the next document.

        Raises:
            InputError: The source has changed, so that there is no such place.
        """
        self._rows = place["rows"]
        self._documents = islice(self._documents, self._rows, None)


class FileReading(Reading):
    """The documents of files, one file after the other. Files that were read before are not opened.

    Args:
        files: The files.
        config: How to read them.
    """

    def __init__(self, files: list[Path], config: SourceConfig) -> None:
        self.files, self.config = files, config
        self._file = self._rows = self._count = 0
        self._documents = iter(())
        self._open = False

    def __next__(self) -> Document:
        while self._file < len(self.files):
            if not self._open:
                self._documents = islice(read_file(self.files[self._file], self.config), self._rows, None)
                self._open = True
            document = next(self._documents, None)
            if document is not None:
                self._rows += 1
                self._count += 1
                return document
            self._file, self._rows, self._open = self._file + 1, 0, False
        if not self._count:
            raise InputError(self.config.path, "", "it holds no documents", "Give a source with at least one row")
        raise StopIteration

    def place(self) -> Place:
        """Return file and row."""
        name = self.files[self._file].name if self._file < len(self.files) else None
        return {"file": self._file, "name": name, "rows": self._rows, "count": self._count}

    def go_on(self, place: Place) -> None:
        """Continue in the file where another reading stood; its rows before are read again, and left out.

        Raises:
            InputError: Another file is there now.
        """
        index, name = place["file"], place["name"]
        found = self.files[index].name if index < len(self.files) else None
        if name != found:
            problem = f"the run that is resumed stood in its file {index + 1}, {name}, and that is {found} now"
            raise InputError("data.sources", self.config.path, problem, "Put the files back as they were")
        self._file, self._rows, self._count = index, place["rows"], place["count"]
