"""Reading: every format gives the texts that were written, and what cannot be read is refused by file and row."""

import gzip
import json
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_finetune.data import readers
from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.readers import Document
from gpt_finetune.data.sources import open_source, utf8
from gpt_finetune.errors import InputError

TEXTS = [
    "plain",
    "多字节文本，标点。",
    "line one\r\nline two\n",
    'quotes " and, commas',
    "emoji 🙂\ttab",
    "  ",
    "\u2028 separators \x0c",
]


def read(path, **options):
    return list(open_source(SourceConfig(str(path), **options), "data.sources[0]").documents())


def texts(path, **options):
    return [document.text for document in read(path, **options)]


def csv_text(rows):
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows)


def write(folder: Path, name: str) -> Path:
    """Write TEXTS in the format that the name stands for."""
    file = folder / name
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    match name.removesuffix(".gz").rsplit(".")[-1]:
        case "jsonl":
            data = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))
        case "json":
            data = json.dumps(rows)
        case "csv":
            data = csv_text([["id", "text"], *([str(row["id"]), row["text"]] for row in rows)])
        case "tsv":
            data = csv_text([["id", "text"], *([str(row["id"]), row["text"]] for row in rows)]).replace('","', '"\t"')
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
            return file
    opener = gzip.open if name.endswith(".gz") else open
    with opener(file, "wb") as stream:
        stream.write(data.encode())
    return file


@pytest.mark.parametrize(
    "name", [n + z for n in ("a.jsonl", "a.json", "a.csv", "a.tsv") for z in ("", ".gz")] + ["a.parquet", "A.JSONL"]
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_formats_give_what_was_written(tmp_path, monkeypatch, name, chunk):
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)  # 7 bytes: rows and characters are cut apart
    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)
    source = write(tmp_path, name) if name != "A.JSONL" else write(tmp_path, "a.jsonl").rename(tmp_path / name)
    assert texts(source) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README", "a.txt.gz", "a.unknown"])
def test_plain_text_is_one_document_byte_for_byte(tmp_path, name):
    text = "第一行\r\nsecond\rthird\n\n\tend 🙂"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read(tmp_path / name) == [Document(text, str(tmp_path / name))]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n", "。", "aab"])
def test_separator(tmp_path, monkeypatch, chunk, separator):
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    parts = ["one\r two", "", "三 aa", "<|endoftext", "a"]
    (tmp_path / "a.txt").write_bytes(separator.join(parts).encode())
    assert texts(tmp_path / "a.txt", separator=separator) == separator.join(parts).split(separator)
    assert read(tmp_path / "a.txt", separator=separator)[1].origin.endswith("a.txt#2")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "latin-1", "big5", "utf-8"])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_encodings(tmp_path, monkeypatch, encoding, chunk):
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    text = "naïve café" if encoding == "latin-1" else "天氣很好, hello\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert texts(tmp_path / "a.txt", encoding=encoding) == [text]
    (tmp_path / "a.jsonl").write_bytes((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode(encoding))
    assert texts(tmp_path / "a.jsonl", encoding=encoding) == [text]


def test_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf["hello"]')
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "a.json") == ["hello"]


def test_rows_of_bare_strings_and_another_column(tmp_path):
    (tmp_path / "a.json").write_text('["a", "b"]')
    (tmp_path / "b.jsonl").write_text('"a"\n\n{"body": "b"}\n')
    assert texts(tmp_path / "a.json") == texts(tmp_path / "b.jsonl", text_column="body") == ["a", "b"]
    assert [d.origin for d in read(tmp_path / "b.jsonl", text_column="body")] == [
        f"{tmp_path}/b.jsonl:1",
        f"{tmp_path}/b.jsonl:3",
    ]


def test_folder_and_glob_are_recursive_sorted_and_leave_hidden_files_out(tmp_path):
    for name in ["b.txt", "a.md", "sub/c.txt", "sub/.hidden.txt", ".git/d.txt", "empty.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.txt" else name)
    assert texts(tmp_path) == ["a.md", "b.txt", "", "sub/c.txt"]
    assert texts(tmp_path / "*.txt") == ["b.txt", ""]
    assert texts(f"{tmp_path}/**/*.txt") == ["b.txt", "", "sub/c.txt"]
    assert texts(f"{tmp_path}/**") == ["a.md", "b.txt", "", "sub/c.txt"]


def test_a_name_with_brackets_is_first_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("found")
    assert texts(tmp_path / "a[1].txt") == ["found"]


BAD = {
    "empty.txt": (b"", {}, ["data.sources[0].path", "empty"]),
    "rows.jsonl": (b"\n \n", {}, ["no documents"]),
    "binary.txt": (b"text\0\1\2", {}, ["binary"]),
    "image.png": (b"\x89PNG\r\n\x1a\n\0\0\0", {}, ["binary", "byte 0"]),
    "chinese.txt": ("abc天气".encode("gb18030"), {}, ["byte 3 is not utf-8", "encoding=", "gb18030"]),
    "utf16.txt": ("天气".encode("utf-16"), {}, ["UTF-16", 'encoding="utf-16"']),
    "wrong.txt": ("天气a".encode(), {"encoding": "ascii"}, ["byte 0 is not ascii"]),
    "cut.txt": ("天气".encode()[:-1], {}, ["byte 3"]),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', {}, ["broken.jsonl:2", "not JSON"]),
    "deep.jsonl": (b"[" * 100000 + b"\n", {}, ["deep.jsonl:1", "not JSON"]),
    "column.jsonl": (b'{"text": "a"}\n{"texts": "b", "id": 1}\n', {}, ["column.jsonl:2", "'texts' is close", "id"]),
    "value.jsonl": (b'{"text": "a"}\n{"text": 7}\n', {}, ["value.jsonl:2", "int, not text"]),
    "null.jsonl": (b'{"text": null}\n', {}, ["null.jsonl:1", "NoneType"]),
    "row.jsonl": (b"[1]\n", {}, ["row.jsonl:1", "list"]),
    "broken.json": (b'["a",\n"b"', {}, ["broken.json:2", "not JSON"]),
    "object.json": (b'{"text": "a"}', {}, ["object.json", "not a list"]),
    "value.json": (b'["a", {"text": ["b"]}]', {}, ["value.json:2", "list, not text"]),
    "column.csv": (b"id,body\n1,a\n", {}, ["column.csv", "'text'", "id, body"]),
    "fields.csv": (b"text\na\nhello, world\n", {}, ["fields.csv:3", "2 fields"]),
    "short.csv": (b"id,text\n1\n", {}, ["short.csv:2", "1 fields"]),
    "quote.csv": (b'text\na\n"never closed\nb\n', {}, ["quote.csv", "not CSV"]),
    "header.csv": (b"text\n", {}, ["no documents"]),
    "not.txt.gz": (b"plain", {}, ["not.txt.gz", "gzip"]),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "abc"}\n' * 999)[:-20], {}, ["cut.jsonl.gz", "gzip"]),
    "not.parquet": (b"plain text, long enough to have a footer", {}, ["not.parquet", "parquet"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_and_row(tmp_path, name):
    data, options, expected = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read(tmp_path / name, **options)
    assert all(part in str(error.value) for part in expected), str(error.value)


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_wrong_encoding_names_the_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "天气ab".encode() + b"\xff more")
    with pytest.raises(InputError, match="byte 11 is not utf-8"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"body": ["a"], "texts": ["b"]}, ["'texts' is close", "body"]),
        ({"text": [1, 2]}, ["int64, not text", "text_column"]),
        ({"text": ["a", None]}, [".parquet:2", "NoneType"]),
        ({"text": pa.array([], pa.string())}, ["no documents"]),
    ],
)
def test_bad_parquet(tmp_path, table, expected):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError) as error:
        read(tmp_path / "a.parquet")
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_parquet_string_types(tmp_path):
    for i, kind in enumerate([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]):
        pq.write_table(pa.table({"text": pa.array(["a", "b"]).cast(kind)}), tmp_path / f"{i}.parquet")
    assert texts(tmp_path) == ["a", "b"] * 3


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "story.txt").write_text("x")
    (tmp_path / "nothing").mkdir()
    for path, expected in {
        tmp_path / "stroy.txt": "story.txt",
        tmp_path / "no" / "folder" / "x": "Relative paths start at",
        tmp_path / "*.csv": "matches no file",
        tmp_path / "nothing": "holds no files",
        "embedded:pyhton": "embedded:python",
    }.items():
        with pytest.raises(InputError, match=expected) as error:
            read(path)
        assert "data.sources[0].path" in str(error.value)


def test_unreadable_file(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    source = open_source(SourceConfig(str(tmp_path)), "data.sources[0]")
    (tmp_path / "a.txt").unlink()
    for use in (source.fingerprint, lambda: list(source.documents())):
        with pytest.raises(InputError, match=r"a\.txt.*cannot be read"):
            use()


def test_lone_surrogates_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine \\ud83d\\ude42"}\n{"text": "half \\ud83d"}\n')
    good, bad = read(tmp_path / "a.jsonl")
    assert utf8(good) == "fine 🙂".encode()
    with pytest.raises(InputError, match=r"a\.jsonl:2.*character 5 .*surrogate"):
        utf8(bad)


@pytest.mark.timeout(20)  # a splitter that scans what it has seen needs minutes
def test_a_long_line_is_read_in_linear_time(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 100)
    (tmp_path / "a.txt").write_text("x" * 10_000_000)
    assert texts(tmp_path / "a.txt", separator="<|endoftext|>") == ["x" * 10_000_000]


def test_fingerprint_follows_content_and_names_not_times(tmp_path):
    def fingerprint():
        return open_source(SourceConfig(str(tmp_path / "in")), "s").fingerprint()

    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.txt"
    file.write_text("content")
    first = fingerprint()
    os.utime(file, (1, 1))
    assert fingerprint() == first
    file.write_text("kontent")
    assert fingerprint() != first
    file.write_text("content")
    assert fingerprint() == first
    file.rename(tmp_path / "in" / "b.txt")
    assert fingerprint() != first


def test_embedded_corpus():
    source = open_source(SourceConfig(), "s")
    documents = list(source.documents())
    origins = [document.origin for document in documents]
    assert len(set(origins)) == len(origins) > 500
    assert sum(len(utf8(document)) for document in documents) > 8_000_000
    assert "embedded:python/json/decoder.py" in origins
    assert "embedded:python/help('lambda')" in origins
    assert not any("/test/" in o or "site-packages" in o or "pydoc_data/topics" in o for o in origins)
    decoder = documents[origins.index("embedded:python/json/decoder.py")]
    assert utf8(decoder) == Path(sysconfig.get_paths()["stdlib"], "json/decoder.py").read_bytes()
    assert documents == list(source.documents())
    assert source.fingerprint() == open_source(SourceConfig(), "s").fingerprint()
