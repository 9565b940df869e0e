"""Local files as records, and as documents: a table from suffix to reader. Bad input is named by file and row."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.errors import InputError

CHUNK_BYTES = 1 << 20  # a file is decoded in pieces of this size, so that large ones need not fit in memory
PARQUET_ROWS = 1024  # rows read at a time


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file or data set, as it stands there.

    Args:
        value: A dict of columns; or the bare value of a JSON row, or the text of a plain-text file.
        file: The file, or the data set, that it stands in.
        place: Where it stands in there: `:17` for a row, `#2` for a part of a plain text, nothing for a whole file.
    """

    value: Any
    file: str
    place: str = ""

    @property
    def origin(self) -> str:
        """File and row, as error messages name them."""
        return self.file + self.place


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Args:
        text: The text, character for character as in the source (a leading byte order mark is not text).
        origin: Where it stood, e.g. `books/a.jsonl:17`.
    """

    text: str
    origin: str


def read_file(file: Path, config: SourceConfig) -> Iterator[Document]:
    """Read one file's documents: the text column of its records.

    Raises:
        InputError: The file or one of its rows cannot be read as text.
    """
    for record in read_records(file, config, config.text_column):
        yield document_of(record, config.text_column)


def read_records(file: Path, config: SourceConfig, column: str | None = None) -> Iterator[Record]:
    """Read one file's records; the suffix names the format, and what no reader knows is plain text.

    Args:
        file: The file.
        config: Its encoding, and the separator of plain text.
        column: The one column that is wanted, which must be there and hold text; None reads them all.

    Raises:
        InputError: The file or one of its rows cannot be read.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    reader = READERS.get(suffixes[-1] if suffixes else "", _read_text)
    try:
        yield from reader(file, config, column)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        _refuse(str(file), "", f"it is not a whole gzip file ({error})", "Compress it again, or drop the .gz")
    except OSError as error:
        _refuse(str(file), "", f"it cannot be read ({error.strerror or error})", "Check the file and its rights")


def document_of(record: Record, column: str) -> Document:
    """Take the text out of a record, or a bare string as it is.

    Raises:
        InputError: The column is missing, or does not hold text.
    """
    value = record.value
    if isinstance(value, dict):
        column_index(column, list(value), record.origin)
        value = value[column]
    return Document(text_of(value, record.origin, column), record.origin)


def _read_text(file: Path, config: SourceConfig, column: str | None) -> Iterator[Record]:
    if config.separator is None:
        yield Record("".join(_text(file, config)), str(file))
        return
    for number, text in enumerate(_split(_text(file, config), config.separator), start=1):
        yield Record(text, str(file), f"#{number}")


def _read_jsonl(file: Path, config: SourceConfig, column: str | None) -> Iterator[Record]:
    for number, line in enumerate(_split(_text(file, config), "\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            _refuse(f"{file}:{number}", line, f"the row is not JSON ({error})", "Repair or remove the row")
        yield Record(value, str(file), f":{number}")


def _read_json(file: Path, config: SourceConfig, column: str | None) -> Iterator[Record]:
    try:
        values = json.loads("".join(_text(file, config)), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):  # it is no text, which _text has said
            raise
        place = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        _refuse(place, "", f"the file is not JSON ({error})", "Repair it; jsonl has one row a line")
    if not isinstance(values, list):
        _refuse(str(file), type(values).__name__, "it is not a list", "Give a list of objects or of strings")
    for number, value in enumerate(values, start=1):
        yield Record(value, str(file), f":{number}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; of a name that stands twice, one value would hide the other."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {twice!r} twice")
    return made


def _read_csv(file: Path, config: SourceConfig, column: str | None) -> Iterator[Record]:
    # The standard limit of 131072 characters a field is made for tables, not for texts.
    csv.field_size_limit(2**31 - 1)
    lines = (line + "\n" for line in _split(_text(file, config), "\n"))
    # Strict: an unclosed quote would otherwise swallow the rest of the file without a word.
    rows = csv.reader(lines, delimiter="\t" if ".tsv" in file.name.lower() else ",", strict=True)
    try:
        header = next((row for row in rows if row), [])
        if twice := sorted({name for name in header if header.count(name) > 1}):
            problem = "the header names it twice, and one would hide the other"
            _refuse(str(file), twice[0], problem, "Rename or remove one of the columns")
        if column is not None:
            column_index(column, header, str(file))
        for row in rows:
            if row and len(row) != len(header):
                problem = f"the row has {len(row)} fields, the header {len(header)}"
                _refuse(f"{file}:{rows.line_num}", row, problem, "Put quotes around texts that hold a delimiter")
            if row:
                yield Record(dict(zip(header, row, strict=True)), str(file), f":{rows.line_num}")
    except csv.Error as error:
        _refuse(f"{file}:{rows.line_num}", "", f"the row is not CSV ({error})", "Check the quotes from this row up")


def _read_parquet(file: Path, config: SourceConfig, column: str | None) -> Iterator[Record]:
    import pyarrow as pa  # half a second of import that only this format needs
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            columns = parquet.schema_arrow.names
            if column is not None:
                kind = parquet.schema_arrow.field(column_index(column, columns, str(file))).type
                if pa.types.is_dictionary(kind):
                    kind = kind.value_type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    remedy = f"Set text_column; the columns are: {', '.join(columns)}"
                    _refuse(str(file), column, f"the column holds {kind}, not text", remedy)
            number = 0
            for batch in parquet.iter_batches(PARQUET_ROWS, columns=None if column is None else [column]):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(row, str(file), f":{number}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own, of a damaged page, bear no number
            raise
        _refuse(str(file), "", f"it is not a readable parquet file ({error})", "Write it again")


READERS: dict[str, Callable[[Path, SourceConfig, str | None], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def text_of(value: Any, origin: str, column: str) -> str:
    """Return the value of a text column.

    Raises:
        InputError: It is not a string.
    """
    if isinstance(value, str):
        return value
    problem = f"column {column!r} holds {type(value).__name__}, not text"
    raise InputError(origin, value, problem, "Repair or remove the row")


def column_index(name: str, columns: list[str], field: str) -> int:
    """Find a column.

    Args:
        name: Name of the column.
        columns: Names that are there.
        field: Where they were looked for: it opens the error message.

    Raises:
        InputError: It is not among them.
    """
    if name in columns:
        return columns.index(name)
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"Set text_column; {repr(near[0]) + ' is close, ' if near else ''}the columns are: {', '.join(columns)}"
    raise InputError(field, name, "there is no such column", hint if columns else "Give rows with named columns")


def _text(file: Path, config: SourceConfig) -> Iterator[str]:
    """Decode a file piece by piece, keeping its line ends."""
    encoding = codecs.lookup(config.encoding).name
    # utf-8-sig drops the byte order mark that Windows editors write; it decodes all else alike.
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    count = 0
    with cast(IO[bytes], opener(file, "rb")) as stream:
        while True:
            data = stream.read(CHUNK_BYTES)
            count += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                _refuse_bytes(file, error, count, config.encoding)
            if "\0" in text:
                _refuse(str(file), "\0", "it is a binary file: it holds NUL characters", "Leave it out; give text")
            yield text
            if not data:
                return


def _refuse_bytes(file: Path, error: UnicodeDecodeError, count: int, encoding: str) -> NoReturn:
    # The decoder sees what it kept back plus the newest chunk: both end at `count`.
    offset = count - len(error.object) + error.start
    value = error.object[error.start : error.start + 8]
    if offset == 0 and value[:2] in (b"\xff\xfe", b"\xfe\xff"):
        remedy = 'It opens like UTF-16: set encoding="utf-16"'
    elif b"\0" in error.object:
        remedy = "It looks binary: leave it out, or give it as text"
    else:
        remedy = 'Set encoding= to what it was written in, e.g. "gb18030" for Chinese or "latin-1"'
    _refuse(str(file), value, f"byte {offset} is not {encoding} ({error.reason})", remedy)


def _split(chunks: Iterator[str], separator: str) -> Iterator[str]:
    """Split a text that comes in chunks, in time linear in its length even when no separator comes."""
    pending: list[str] = []
    tail = ""  # may hold the first half of a separator
    for chunk in chunks:
        *whole, rest = (tail + chunk).split(separator)
        if whole:
            yield "".join(pending) + whole[0]
            yield from whole[1:]
            pending.clear()
        cut = max(0, len(rest) - len(separator) + 1)
        pending.append(rest[:cut])
        tail = rest[cut:]
    yield "".join(pending) + tail


def _refuse(field: str, value: object, problem: str, remedy: str) -> NoReturn:
    raise InputError(field, value, problem, remedy) from None
