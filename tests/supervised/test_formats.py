"""Rows of every format become the conversation that they hold; what cannot be read is refused by file and row."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from supervised_helpers import chat, learned, whole

from gpt_finetune.errors import InputError
from gpt_finetune.supervised import ExampleSourceConfig
from gpt_finetune.supervised.formats import Conversation, Passage, digest
from gpt_finetune.supervised.sources import read_examples

USER, ANSWER = {"role": "user", "content": "你好?"}, {"role": "assistant", "content": "Hi."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(path, **options):
    return list(read_examples(ExampleSourceConfig(str(path), **options), "data.sources[0]"))


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


SAME = {
    "messages": {"messages": [USER, ANSWER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "你好?"}]}, ANSWER]},
    "nulls": {"messages": [{**USER, "tool_calls": None}, {**ANSWER, "name": None}], "tools": None},
    "sharegpt": {"conversations": [{"from": "human", "value": "你好?"}, {"from": "gpt", "value": "Hi."}]},
    "alpaca": {"instruction": "你好?", "input": "", "output": "Hi."},
    "prompt": {"prompt": [USER], "completion": [ANSWER], "text": "ignored"},
}


@pytest.mark.parametrize("name", SAME)
def test_formats_are_told_by_their_columns(tmp_path, name):
    (example,) = read(write(tmp_path / "a.jsonl", SAME[name]))
    assert example == Conversation(f"{tmp_path}/a.jsonl:1", [USER, ANSWER], None, (1,))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_file_formats(tmp_path, kind):
    rows = [chat("你好\n吗?", f"Hi, {i}.") for i in range(3)]
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind in ("csv", "tsv"):
        with file.open("w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",")
            out.writerows([["id", "messages"], *([i, json.dumps(row["messages"])] for i, row in enumerate(rows))])
    else:
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        file.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    examples = read(file)
    assert [example.messages for example in examples] == [row["messages"] for row in rows]
    assert examples[1].origin.rpartition(":")[0] == str(file)


def test_hub_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl", chat("你好?", "Hi."), chat("a?", "b.", system="Be kind."))
    first, second = read(f"hub:{tmp_path}/hub")
    assert first.messages == [USER, ANSWER]
    assert [turn["role"] for turn in second.messages] == ["system", "user", "assistant"]
    assert second.origin == f"hub:{tmp_path}/hub:2"


def test_each_file_of_a_folder_has_a_format_of_its_own(tmp_path):
    write(tmp_path / "a.jsonl", SAME["messages"])
    write(tmp_path / "b.jsonl", SAME["alpaca"])
    (tmp_path / "c.txt").write_text("Once upon a time.")
    write(tmp_path / "d.jsonl", {"prompt": "1+1=", "completion": "2"})
    kinds = [type(example) for example in read(tmp_path)]
    assert kinds == [Conversation, Conversation, Passage, Passage]


def test_a_named_format_overrides_what_columns_say(tmp_path):
    file = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "text": "ab"})
    assert read(file) == [Passage(f"{file}:1", "a", "b")]
    assert read(file, format="text") == [Passage(f"{file}:1", None, "ab")]


def test_system_history_tools_and_calls_are_kept(tmp_path):
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    turns = [{"from": "human", "value": "1+1?"}, call, {"from": "observation", "value": "2"}]
    row = {"conversations": [*turns, {"from": "gpt", "value": "Two."}], "system": "Add.", "tools": json.dumps([TOOL])}
    (shared,) = read(write(tmp_path / "a.jsonl", row))
    openai = {**CALL, "id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Add."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [openai]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "Two."},
    ]
    (own,) = read(write(tmp_path / "b.jsonl", {"messages": messages, "tools": [TOOL]}))
    assert [turn["role"] for turn in own.messages] == [turn["role"] for turn in shared.messages]
    assert shared.messages[2]["tool_calls"] == [CALL]
    assert own.messages[2] == {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]}
    assert own.tools == shared.tools == [TOOL]
    assert own.learned == shared.learned == (2, 4)
    alpaca = {"instruction": "Go on.", "input": "x", "output": "y", "system": "s", "history": [["a", "b"]]}
    (example,) = read(write(tmp_path / "c.jsonl", alpaca))
    assert [turn["content"] for turn in example.messages] == ["s", "a", "b", "Go on.\n\nx", "y"]


def test_only_the_completion_of_messages_is_learned(tmp_path):
    row = {"prompt": [{"role": "system", "content": ""}, *chat("a", "b", "c")["messages"]], "completion": [ANSWER]}
    (example,) = read(write(tmp_path / "a.jsonl", row))
    assert len(example.messages) == 4
    assert example.learned == (3,)


def test_a_turn_of_weight_0_is_not_learned(tmp_path):
    row = chat("a", "b", "c", "d")
    row["messages"][1]["weight"] = 0
    assert read(write(tmp_path / "a.jsonl", row))[0].learned == (3,)
    row["messages"][3]["weight"] = 0
    with pytest.raises(InputError, match=r"a\.jsonl:1 .*no turn of the assistant to learn"):
        read(write(tmp_path / "a.jsonl", row))


def test_equal_but_for_spaces_is_equal(tmp_path):
    a, b, c = read(
        write(tmp_path / "a.jsonl", chat("a  b", "你好 c"), chat("a b\n", " 你好\tc"), chat("a b", "你好 d"))
    )
    assert digest(a) == digest(b) != digest(c)


def turns(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


BAD = {
    "no assistant": (turns("user"), ["a.jsonl:2", "no turn of the assistant"]),
    "order": (turns("user", "user", "assistant"), ["a.jsonl:2: messages[1] = 'user'", "after a turn of user"]),
    "beginning": (turns("assistant", "user"), ["messages[0] = 'assistant'", "at the beginning", "system or user"]),
    "late system": (turns("user", "assistant", "system"), ["messages[2] = 'system'"]),
    "role": (turns("user", "asistant"), ["a.jsonl:2: messages[1] = 'asistant'", "Did you mean 'assistant'?"]),
    "no role": ({"messages": [{"content": "x"}]}, ["messages[0]", "names no role"]),
    "empty answer": ({"messages": [USER, {"role": "assistant", "content": " "}]}, ["messages[1]", "no tool_calls"]),
    "null answer": ({"messages": [USER, {"role": "assistant", "content": None}]}, ["messages[1]", "no content"]),
    "empty question": ({"messages": [{"role": "user", "content": ""}, ANSWER]}, ["messages[0]", "no content"]),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, ["messages[0]", "not text"]),
    "number": ({"messages": [{"role": "user", "content": 7}, ANSWER]}, ["messages[0]", "= 7", "not text"]),
    "no list": ({"messages": "hello"}, ["a.jsonl:2: messages = 'hello'", "str, not a list of turns"]),
    "no turns": ({"messages": []}, ["holds no turns"]),
    "no turn": ({"messages": ["hello"]}, ["messages[0] = 'hello'", "role and content"]),
    "call": (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}]},
        ["messages[1].tool_calls[0]", "no function"],
    ),
    "tools": ({"messages": [USER, ANSWER], "tools": ["add"]}, ["a.jsonl:2: tools", "no list of JSON schemas"]),
    "weight": ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, ["messages[1].weight = 0.5"]),
    "another format": (SAME["alpaca"], ["a.jsonl:2", "format messages", "no 'messages'", "file of their own"]),
    "no object": ([1], ["a.jsonl:2 = [1]", "no object of columns"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_by_name(tmp_path, name):
    row, expected = BAD[name]
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.jsonl", SAME["messages"], row))
    assert all(part in str(error.value) for part in expected), str(error.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "answer": "b"}, ["a.jsonl:1", "no known format", "sharegpt: conversations"]),
        ({"prompt": "a", "completion": " "}, ["a.jsonl:1: completion", "empty"]),
        ({"prompt": "a", "completion": [ANSWER]}, ["a.jsonl:1: completion", "list, not text"]),
        ({"text": "\n"}, ["a.jsonl:1", "text is empty"]),
        ({"instruction": "a", "output": ""}, ["a.jsonl:1: turns[1] = 'assistant'", "no content"]),
        ({"instruction": 1, "output": "b"}, ["a.jsonl:1: instruction", "int, not text"]),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, ["a.jsonl:1: history", "pairs"]),
    ],
)
def test_bad_rows_of_other_formats(tmp_path, row, expected):
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.jsonl", row))
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_a_named_format_that_a_row_has_not(tmp_path):
    with pytest.raises(
        InputError, match=r"a\.jsonl:1 .*said to have the format alpaca.*no 'instruction' and no 'output'"
    ):
        read(write(tmp_path / "a.jsonl", SAME["messages"]), format="alpaca")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("embedded:python", "holds documents"), ("package:chatterbot-corpus", "no file"), ("", "empty")],
)
def test_bad_paths(path, expected):
    with pytest.raises(InputError, match=rf"data\.sources\[0\]\.path.*{expected}"):
        ExampleSourceConfig(path).validate("data.sources[0]")


def test_no_such_package():
    with pytest.raises(InputError, match=r"data\.sources\[0\]\.path.*Did you mean 'chatterbot-corpus'"):
        read("package:chatterbot-corpse/english.jsonl")


def test_prompts_with_completions_and_text_bypass_the_template(prepare):
    prepared = prepare([{"prompt": "天气", "completion": "很好"}], [{"text": "the answer"}])
    assert (whole(prepared), learned(prepared)) == ("天气很好<|endoftext|>", ["很好<|endoftext|>"])
    # The first token is no target: nothing stands before it.
    first = prepared.tokenizer.decode(prepared.train.example(1).ids[:1])
    assert learned(prepared, 1) == ["the answer<|endoftext|>".removeprefix(first)]
