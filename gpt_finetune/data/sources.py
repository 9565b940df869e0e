"""Where documents come from: the embedded corpus, local files in many formats, Hub data sets."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import xxhash

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.embedded import embedded_python
from gpt_finetune.data.hub import hub_documents, hub_fingerprint, hub_records, load_hub
from gpt_finetune.data.readers import Document, Record, read_records
from gpt_finetune.data.reading import FileReading
from gpt_finetune.errors import InputError, did_you_mean

T = TypeVar("T")
# Beginning of a path -> what finds the file that it names, given the path and the source's dotted config key
Finders = Mapping[str, Callable[[str, str], str]]

EMBEDDED: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {"embedded:python": embedded_python}


@dataclass(frozen=True)
class Source:
    """An opened source. Both callables can be pickled and called again: a corpus is read in several passes.

    Args:
        config: What the user said about it.
        documents: Reads every document, always in the same order.
        fingerprint: Hashes the content, so that equal content has an equal fingerprint.
    """

    config: SourceConfig
    documents: Callable[[], Iterator[Document]]
    fingerprint: Callable[[], str]


def open_source(config: SourceConfig, key: str, streaming: bool = False, finders: Finders | None = None) -> Source:
    """Find a source without reading its documents.

    Args:
        config: What to open.
        key: Dotted config key of the source, for error messages.
        streaming: Read a Hub data set over the network instead of downloading it first.
        finders: Places besides files and the Hub that sources may lie in, such as packages.

    Raises:
        InputError: Nothing is there, or it cannot be opened.
    """
    path = config.path
    if path.startswith("embedded:"):
        if path not in EMBEDDED:
            raise InputError(f"{key}.path", path, "no such embedded corpus", did_you_mean(path, EMBEDDED))
        return Source(config, partial(_embedded_documents, path), partial(_embedded_fingerprint, path))
    if path.startswith("hub:"):
        dataset = load_hub(config, key, streaming)
        return Source(config, partial(hub_documents, dataset, config, key), partial(hub_fingerprint, dataset, config))
    find = next((found for start, found in (finders or {}).items() if path.startswith(start)), None)
    root, files = _find_files(path if find is None else find(path, key), key)
    return Source(config, partial(FileReading, files, config), partial(_local_fingerprint, root, files))


def open_records(config: SourceConfig, key: str) -> Iterator[Record]:
    """Find a source of rows with any columns, local files or a Hub data set, and read it row by row.

    Args:
        config: What to open; its text column is not looked at.
        key: Dotted config key of the source, for error messages.

    Raises:
        InputError: Nothing is there, or it cannot be read.
    """
    if config.path.startswith("hub:"):
        return hub_records(load_hub(config, key, streaming=False), config)
    return _not_empty(
        (record for file in _find_files(config.path, key)[1] for record in read_records(file, config)), config
    )


def utf8(document: Document) -> bytes:
    """Return the text as UTF-8.

    Raises:
        InputError: The text holds half a surrogate pair, which no encoding can write.
    """
    try:
        return document.text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            document.origin,
            document.text[error.start : error.start + 20],
            f"character {error.start} is half a surrogate pair, which is no text",
            r"Repair or remove the row; \ud800 to \udfff only come in pairs",
        ) from None


def _embedded_documents(path: str) -> Iterator[Document]:
    for origin, text in EMBEDDED[path]():
        yield Document(text, origin)


def _embedded_fingerprint(path: str) -> str:
    state = xxhash.xxh3_128()
    for origin, text in EMBEDDED[path]():
        for part in (origin.encode(), text.encode()):
            state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def _not_empty(items: Iterator[T], config: SourceConfig) -> Iterator[T]:
    count = 0
    for item in items:
        count += 1
        yield item
    if not count:
        raise InputError(config.path, "", "it holds no documents", "Give a source with at least one row")


def _local_fingerprint(root: Path, files: list[Path]) -> str:
    """Hash names and bytes, never times: touching a file keeps the cache, editing it does not."""
    state = xxhash.xxh3_128()
    for file in files:
        name = file.relative_to(root).as_posix().encode()
        try:
            state.update(len(name).to_bytes(8, "little") + name + file.stat().st_size.to_bytes(8, "little"))
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    state.update(chunk)
        except OSError as error:
            raise InputError(str(file), error.strerror, "it cannot be read", "Check the file's rights") from None
    return state.hexdigest()


def _find_files(path: str, key: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files that a file, folder or glob stands for, sorted."""
    field, given = f"{key}.path", Path(path).expanduser()
    if given.is_dir():
        files = _walk(given)
        if not files:
            raise InputError(field, path, "the folder holds no files", "Put text files in it, or name another")
        return given, files
    if given.exists():
        if given.stat().st_size == 0:
            raise InputError(field, path, "the file is empty", "Give a file with text in it")
        return given.parent, [given]
    if magic := re.search(r"[*?[]", str(given)):
        # Not Path.glob: it takes hidden files along, and its ** leaves out files.
        matches = glob.glob(str(given), recursive=True)  # noqa: PTH207
        files = sorted(Path(name) for name in matches if Path(name).is_file())
        if not files:
            raise InputError(field, path, "the pattern matches no file", "Check it; ** reaches into sub-folders")
        return Path(str(given)[: magic.start()] + "x").parent, files
    siblings = [file.name for file in given.parent.iterdir()] if given.parent.is_dir() else []
    near = difflib.get_close_matches(given.name, siblings, n=1)
    hint = f"Did you mean {str(given.with_name(near[0]))!r}" if near else f"Relative paths start at {Path.cwd()}"
    raise InputError(field, path, "no such file or folder", hint)


def _walk(folder: Path) -> list[Path]:
    """List a folder's files, sub-folders included, without hidden ones: .git and .venv are not text anyone means."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)
