"""Rows, masks and packing under what hypothesis thinks of: the sums hold, and what is learned is what was answered."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fuzzing import amounts
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.packing import PackedDataset, TokenWriter, to_rows
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.supervised import ExamplesConfig, ExampleSourceConfig
from gpt_finetune.supervised.encoding import Tokens
from gpt_finetune.supervised.formats import ExampleReader
from gpt_finetune.supervised.prepare import prepare_examples
from gpt_finetune.supervised.rows import Collator, ExampleRows, pack

END = "<|im_end|>"
# U+FDD0 is kept for a program's own use (see rendering.MARK); half surrogates are no text.
SIGNS = st.characters(codec="utf-8", exclude_characters="\ufdd0")
SPELT = st.sampled_from([END, "<|im_start|>assistant\n", "<|endoftext|>", "<|pad|>", "{{ x }}", "\n\n", " "])
TEXT = st.lists(st.text(SIGNS, min_size=1, max_size=8) | SPELT, min_size=1, max_size=3).map("".join)
CONTENT = TEXT.filter(str.strip)
CHAT = st.lists(CONTENT, min_size=2, max_size=6).map(lambda said: said[: len(said) // 2 * 2])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def tokenizer(base):
    from gpt_finetune.data.tokenizer import load_tokenizer

    return load_tokenizer(str(base))


def prepare(folder, rows, tokenizer, **options):
    """Prepare rows of chats that a file holds."""
    file = folder / "rows.jsonl"
    said = [[{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row)] for row in rows]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in said), encoding="utf-8")
    options = {"chat_template": "chatml", "validation_fraction": 0.0, "max_length": 4096, **options}
    return prepare_examples(ExamplesConfig([ExampleSourceConfig(str(file))], **options), tokenizer)


@amounts
def test_the_mask_covers_exactly_what_the_assistant_says(tried, tokenizer, tmp_path):
    @tried(20, 200)
    @given(CHAT)
    def check(said):
        prepared = prepare(tmp_path, [said], tokenizer, packing=False)
        example = prepared.train.example(0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], example.learned.astype(int), [0]])))
        runs = [prepared.tokenizer.decode(example.ids[begin:end]) for begin, end in edges.reshape(-1, 2)]
        assert runs == [text + END for text in said[1::2]]
        whole = "".join(f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}{END}\n" for i, text in enumerate(said))
        assert prepared.tokenizer.decode(example.ids) == whole

    check()


@amounts
def test_every_row_is_kept_or_dropped_for_a_reason(tried, tokenizer, tmp_path):
    @tried(12, 80)
    @given(
        st.lists(CHAT, min_size=1, max_size=8),
        st.sampled_from([8, 24, 64]),
        st.sampled_from(["truncate", "split", "drop"]),
        st.booleans(),
        st.floats(0, 0.9),
    )
    def check(rows, max_length, too_long, packing, share):
        options = {"max_length": max_length, "too_long": too_long, "packing": packing, "validation_fraction": share}
        try:
            prepared = prepare(tmp_path, rows, tokenizer, **options)
        except InputError as error:
            assert "no example is left to train on" in error.problem
            return
        total = prepared.ledger.total
        assert total.examples.total == len(rows)
        assert total.examples.train + total.examples.validation + total.examples.dropped == len(rows)
        for made in filter(None, (prepared.train, prepared.validation)):
            assert max(made.lengths) <= max_length
        assert total.tokens.trained == sum(int(row["labels"][1:].ne(-100).sum()) for row in prepared.train)

    check()


@amounts
def test_what_is_no_chat_is_refused_by_name(tried, tokenizer):
    names = st.sampled_from(
        ["messages", "conversations", "prompt", "completion", "instruction", "output", "text", "tools", "history"]
    )
    turn = st.dictionaries(
        st.sampled_from(["role", "from", "content", "value", "tool_calls", "weight"]),
        VALUES | st.sampled_from(["user", "assistant", "tool"]),
        max_size=4,
    )
    row = st.dictionaries(names, VALUES | st.lists(turn, max_size=3) | st.text(max_size=5), max_size=4)

    @tried(40, 600)
    @given(st.one_of(VALUES, row, row))
    def check(value):
        try:
            list(ExampleReader()([Record(value, "rows.jsonl", ":1")]))
        except InputError as error:
            assert str(error).startswith("rows.jsonl:1")
            assert "\n" not in str(error)

    check()


@amounts
def test_a_stream_teaches_every_token_once(tried, tmp_path):
    @tried(30, 400)
    @given(st.lists(st.lists(st.integers(2, 999), max_size=40), min_size=1, max_size=12), st.integers(2, 17))
    def check(documents, block_size):
        with TokenWriter(tmp_path / "stream", np.dtype(np.uint16), 0, 1, block_size) as writer:
            for document in documents:
                writer.write([np.array(document, np.uint16)])
        made = PackedDataset(tmp_path / "stream", "uint16", writer.tokens, block_size)
        ids, lengths = made.gather(np.arange(len(made)))
        rows = to_rows(ids, lengths)
        assert all(len(row["input_ids"]) == block_size for row in rows)
        taught = [int(label) for row in rows for label in row["labels"][1:] if label != -100]
        assert taught == [token for document in documents for token in (*document, 0)]

    check()


@amounts
def test_packing_holds_each_example_once_and_apart(tried):
    @tried(30, 400)
    @given(st.lists(st.integers(1, 24), min_size=1, max_size=60))
    def check(sizes):
        width = 24
        rows = pack(sizes, width)
        assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
        assert all(sum(sizes[item] for item in row) <= width for row in rows)
        assert len(rows) <= 11 / 9 * -(-sum(sizes) // width) + sum(2 * size > width for size in sizes) + 1
        starts = np.cumsum([0, *sizes])
        examples = [
            Tokens(np.arange(starts[i], starts[i + 1], dtype=np.int32), np.ones(size, bool))
            for i, size in enumerate(sizes)
        ]
        made = ExampleRows(examples, range(len(sizes)), width)
        batch = Collator(0, width)([made[i] for i in range(len(made))])
        assert batch["input_ids"].shape == (len(rows), width)
        ids = batch["labels"][batch["labels"] != -100]
        assert sorted(ids.tolist()) == list(range(starts[-1]))
        firsts = batch["input_ids"][(batch["position_ids"] == 0) & (batch["labels"] != -100)]
        assert sorted(firsts.tolist()) == starts[:-1].tolist()

    check()


@amounts
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz"])
def test_no_damaged_file_ends_in_a_bare_error(tried, suffix, tmp_path):
    import gzip

    from bad_inputs import lines, parquet

    from gpt_finetune.data.sources import open_records

    texts = ["good, and well", 'a "quoted" text', "天气很好", "two\nlines"]
    labels = ["a", "b", "c", "d"]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    table = "".join(
        f'"{text.replace(chr(34), chr(34) * 2)}",{label}\n' for text, label in zip(texts, labels, strict=True)
    )
    whole = {
        ".jsonl": lines(rows).encode(),
        ".json": json.dumps(rows).encode(),
        ".csv": ("text,label\n" + table).encode(),
        ".tsv": ("text\tlabel\n" + table.replace(",", "\t")).encode(),
        ".txt": "\n".join(texts).encode(),
        ".parquet": parquet({"text": texts, "label": labels}),
        ".jsonl.gz": gzip.compress(lines(rows).encode(), mtime=0),
    }[suffix]
    edit = st.tuples(
        st.sampled_from(["set", "cut", "insert", "end"]),
        st.integers(0, len(whole) - 1),
        st.binary(min_size=1, max_size=3),
    )

    @tried(15, 120)
    @given(st.lists(edit, min_size=1, max_size=3))
    def check(edits):
        content = whole
        for kind, place, data in edits:
            before, after = content[:place], content[place:]
            content = {
                "set": before + data + after[len(data) :],
                "cut": before + after[len(data) * 7 :],
                "insert": before + data + after,
                "end": before,
            }[kind]
        file = tmp_path / f"rows{suffix}"
        file.write_bytes(content)
        try:
            for record in open_records(SourceConfig(str(file)), "data.sources[0]"):
                assert record.origin.startswith(str(file))
        except InputError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)

    check()
