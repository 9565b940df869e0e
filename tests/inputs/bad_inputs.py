"""The table of bad input: what lies in the folder, which recipe is started how, and what its one line must say."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Args:
        recipe: Which recipe meets it.
        said: What its one line must hold: file and row, column, value, limit, remedy, as far as they apply.
        rows: What stands in rows.jsonl: objects, or the whole content as text or bytes; None writes no such file.
        files: Further files by name: text, bytes, or a function of the path and the base checkpoint that makes them.
        words: Further words of the command line; data.sources is rows.jsonl unless they name it.
    """

    recipe: str
    said: tuple[str, ...]
    rows: list[Any] | str | bytes | None = None
    files: Mapping[str, str | bytes | Callable[[Path, Path], None]] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def lines(rows: list[Any]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def chat(*turns: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    """Return a row of turns."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


ASK, SAY = ("user", "is it good?"), ("assistant", "it is well.")
TEXT = [{"text": f"the answer {i} is good, the plot {i} is bad"} for i in range(20)]
CHAT = [chat(("user", f"is {i} good?"), ("assistant", f"{i} is well.")) for i in range(10)]
LABEL = [{"text": f"the plot {i} is {('bad', 'good')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(12)]
TAGS = [{"words": ["the", f"plot{i}", "is"], "tags": ["O", "B-x", "O"]} for i in range(12)]
ANSWER = [{"question": f"what is {i}?", "context": f"the answer {i} is good", "answers": ["good"]} for i in range(12)]
CHOICE = [{"question": f"what is {i}?", "choices": ["good", "bad"], "answer": i % 2} for i in range(12)]
PAIRS = [{"source": f"the plot {i}", "target": f"well {i}"} for i in range(12)]


def with_row(rows: list[Any], place: int, row: Any) -> list[Any]:
    """Return rows with one of them replaced; `place` counts from 1, as messages do."""
    return [*rows[: place - 1], row, *rows[place:]]


def parquet(columns: dict[str, list[Any]]) -> bytes:
    """Return a parquet file of these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def larger_tokenizer(path: Path, base: Path) -> None:
    """Save a tokenizer of more tokens than the base's model embeds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"word{i}" for i in range(50)])
    tokenizer.save_pretrained(path)


def endless_tokenizer(path: Path, base: Path) -> None:
    """Save a tokenizer without an end token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(path)


def torn_tokenizer(path: Path, base: Path) -> None:
    """Save a tokenizer whose file ends in its middle."""
    endless_tokenizer(path, base)
    file = path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:1000])


def classifier(path: Path, base: Path) -> None:
    """Save a classifier of three labels."""
    from transformers import AutoTokenizer

    from gpt_finetune import GPTConfig, GPTForSequenceClassification

    GPTForSequenceClassification(GPTConfig.from_pretrained(base, num_labels=3)).save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)


def torn_weights(path: Path, base: Path) -> None:
    """Save a checkpoint whose weights end in their middle."""
    path.mkdir()
    for file in base.iterdir():
        content = file.read_bytes()
        (path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)


def foreign_template(path: Path, base: Path) -> None:
    """Write a chat template that forgets what the user said."""
    path.write_text("{% for m in messages %}{{ m.role }}: ok{% endfor %}", encoding="utf-8")


AT = "{folder}/rows.jsonl"
SOURCE = "data.sources=[{path: {folder}/%s}]"

CASES: dict[str, Case] = {
    # ------------------------------------------------------------------ files that cannot be read
    "no-file": Case(
        "pretrain",
        ("data.sources[0].path", "no such file or folder", "Did you mean", "rows2.jsonl"),
        files={"rows2.jsonl": lines(TEXT)},
    ),
    "empty-file": Case("finetune", ("data.sources[0].path", "rows.jsonl", "the file is empty"), ""),
    "only-blank-lines": Case("classify", ("rows.jsonl", "it holds no documents"), "\n  \n\n"),
    "only-blank-text": Case(
        "pretrain", ("rows.jsonl", "no document is left", "2 empty"), lines([{"text": " "}, {"text": "\n"}])
    ),
    "folder-without-files": Case(
        "pretrain",
        ("data.sources[0].path", "the folder holds no files"),
        files={"empty": lambda path, base: path.mkdir()},
        words=(SOURCE % "empty",),
    ),
    "pattern-without-files": Case("pretrain", ("matches no file",), words=(SOURCE % "*.none",)),
    "latin-1": Case(
        "classify",
        ("rows.jsonl", "byte", "is not utf-8", "encoding="),
        lines([{"text": "très bien", "label": "a"}]).encode("latin-1"),
    ),
    "utf-16": Case("finetune", ("rows.jsonl", "UTF-16", 'encoding="utf-16"'), lines(CHAT).encode("utf-16")),
    "nul-bytes": Case("tag", ("rows.jsonl", "binary file", "NUL"), lines(TAGS).replace("the", "t\0e")),
    "encoding-unknown": Case(
        "pretrain",
        ("data.sources[0].encoding", "utf-9", "no such text encoding", "utf-8"),
        TEXT,
        words=("data.sources=[{path: {folder}/rows.jsonl, encoding: utf-9}]",),
    ),
    "torn-json-line": Case("finetune", (AT + ":3", "not JSON", "Repair"), lines(CHAT[:2]) + '{"messages": [{"ro\n'),
    "array-for-lines": Case("classify", (AT + ":1", "the row"), json.dumps(LABEL)),
    "indented-array": Case("classify", (AT + ":1", "not JSON"), json.dumps(LABEL, indent=1)),
    "object-for-array": Case(
        "classify",
        ("rows.json", "dict", "it is not a list"),
        files={"rows.json": json.dumps({"data": LABEL})},
        words=(SOURCE % "rows.json",),
    ),
    "key-twice": Case(
        "classify", (AT + ":2", "names 'label' twice"), lines(LABEL[:1]) + '{"text": "a", "label": "a", "label": "b"}'
    ),
    "number-for-row": Case("finetune", (AT + ":2", "7", "no object of columns"), with_row(CHAT, 2, 7)),
    "csv-unequal-columns": Case(
        "classify",
        ("rows.csv:3", "3 fields, the header 2", "quotes"),
        files={"rows.csv": "text,label\ngood,a\nbad, very bad,b\n"},
        words=(SOURCE % "rows.csv",),
    ),
    "csv-open-quote": Case(
        "classify",
        ("rows.csv", "not CSV", "quotes"),
        files={"rows.csv": 'text,label\n"good,a\nbad,b\n'},
        words=(SOURCE % "rows.csv",),
    ),
    "csv-header-only": Case(
        "classify",
        ("rows.csv", "it holds no documents"),
        files={"rows.csv": "text,label\n"},
        words=(SOURCE % "rows.csv",),
    ),
    "csv-column-twice": Case(
        "classify",
        ("rows.csv", "'label'", "twice"),
        files={"rows.csv": "text,label,label\ngood,a,b\nbad,b,a\n"},
        words=(SOURCE % "rows.csv",),
    ),
    "torn-gzip": Case(
        "pretrain",
        ("rows.jsonl.gz", "not a whole gzip file", "Compress it again"),
        files={"rows.jsonl.gz": gzip.compress(lines(TEXT * 50).encode(), mtime=0)[:-40]},
        words=(SOURCE % "rows.jsonl.gz",),
    ),
    "not-gzip": Case(
        "classify",
        ("rows.jsonl.gz", "not a whole gzip file"),
        files={"rows.jsonl.gz": lines(LABEL)},
        words=(SOURCE % "rows.jsonl.gz",),
    ),
    "torn-parquet": Case(
        "classify",
        ("rows.parquet", "not a readable parquet file"),
        files={"rows.parquet": parquet({"text": ["a"] * 99, "label": ["b"] * 99})[:-9]},
        words=(SOURCE % "rows.parquet",),
    ),
    "damaged-parquet": Case(
        "classify",
        ("rows.parquet", "not a readable parquet file"),
        files={
            "rows.parquet": (lambda b: b[:4] + b"\xff" * 60 + b[64:])(
                parquet({"text": ["a"] * 99, "label": ["b"] * 99})
            )
        },
        words=(SOURCE % "rows.parquet",),
    ),
    "half-surrogate": Case(
        "pretrain", (AT + ":2", "half a surrogate pair"), '{"text": "good"}\n{"text": "a\\ud800b"}\n'
    ),
    "row-too-deep": Case("finetune", (AT + ":1", "not JSON"), '{"messages": ' + "[" * 200_000 + "]" * 200_000 + "}\n"),
    # ------------------------------------------------------------------ columns and values of rows
    "column-missing": Case(
        "classify",
        (AT + ":1", "no column 'label', which data.label_column names", "Did you mean 'lable'"),
        [{"text": "good", "lable": "a"}],
    ),
    "column-missing-later": Case("classify", (AT + ":4", "no column 'label'"), with_row(LABEL, 4, {"text": "good"})),
    "column-missing-pretrain": Case(
        "pretrain", (AT + ":1", "'text'", "no such column", "Set text_column", "txt"), [{"txt": "a"}]
    ),
    "other-columns-in-second-file": Case(
        "classify",
        ("more.jsonl:1", "no column 'label'"),
        LABEL,
        {"more.jsonl": lines([{"text": "a", "sentiment": "b"}])},
        ("data.sources=[{path: {folder}/rows.jsonl}, {path: {folder}/more.jsonl}]",),
    ),
    "rows-of-another-format": Case(
        "finetune",
        (AT + ":3", "the format messages", "no 'messages'"),
        with_row(CHAT, 3, {"prompt": "a", "completion": "b"}),
    ),
    "unknown-format": Case(
        "finetune", (AT + ":1", "belong to no known format", "Known: messages"), [{"question": "a", "reply": "b"}]
    ),
    "text-is-number": Case(
        "pretrain", (AT + ":2", "5", "column 'text' holds int, not text"), with_row(TEXT, 2, {"text": 5})
    ),
    "text-is-null": Case(
        "classify", (AT + ":2", "None", "not text"), with_row(LABEL, 2, {"text": None, "label": "bad"})
    ),
    "text-empty": Case("classify", (AT + ":2", "the text is empty"), with_row(LABEL, 2, {"text": " ", "label": "bad"})),
    "label-null": Case("classify", (AT + ":2", "NoneType"), with_row(LABEL, 2, {"text": "good", "label": None})),
    "label-nan": Case(
        "classify", (AT + ":2", "nan", "fraction"), with_row(LABEL, 2, {"text": "good", "label": float("nan")})
    ),
    "label-nan-in-regression": Case(
        "classify",
        (AT + ":2", "nan", "no number", "regression"),
        [{"text": f"plot {i}", "label": float("nan") if i == 1 else i / 3} for i in range(12)],
        words=("data.problem_type=regression",),
    ),
    "text-label-in-regression": Case(
        "classify", (AT + ":1", "'bad'", "no number"), LABEL, words=("data.problem_type=regression",)
    ),
    "number-too-large-in-regression": Case(
        "classify",
        (AT + ":3", "1e+200", "float32"),
        [{"text": f"plot {i}", "label": 1e200 if i == 2 else i / 3} for i in range(12)],
        words=("data.problem_type=regression",),
    ),
    "numbers-beside-texts": Case(
        "classify", (AT + ":2", "is an integer", ":1 is a text"), with_row(LABEL, 2, {"text": "x", "label": 1})
    ),
    "one-label-after-the-split": Case("classify", ("data.label_column", "after the split have one label"), LABEL[:2]),
    "head-of-other-labels": Case(
        "classify",
        ("model", "its head tells 3 labels apart, and the training rows have 2"),
        LABEL,
        {"three": classifier},
        ("model={folder}/three",),
    ),
    "one-label-only": Case(
        "classify", ("data.label_column", "one label"), [{"text": r["text"], "label": "a"} for r in LABEL]
    ),
    "label-held-out-only": Case(
        "classify",
        ("held.jsonl:1", "'fair'", "no training row has this label"),
        LABEL,
        {"held.jsonl": lines([{"text": "a plot", "label": "fair"}])},
        ("data.validation=[{path: {folder}/held.jsonl}]",),
    ),
    "all-rows-the-same": Case("classify", ("data.", "no "), [{"text": "plot", "label": "a"}] * 9),
    "tags-and-words-unequal": Case(
        "tag", (AT + ":2", "3 words have 2 tags"), with_row(TAGS, 2, {"words": ["a", "b", "c"], "tags": ["O", "O"]})
    ),
    "tag-is-fraction": Case(
        "tag", (AT + ":2", "0.5", "a text or an integer"), with_row(TAGS, 2, {"words": ["a"], "tags": [0.5]})
    ),
    "tags-are-text": Case("tag", (AT + ":1", "is str, not a list"), [{"words": ["a", "b"], "tags": "O O"}]),
    "not-iob2": Case(
        "tag", (AT + ":1", "'X'", "data.scheme is iob2"), [{"words": ["a"], "tags": ["X"]}], words=("data.scheme=iob2",)
    ),
    "answer-not-in-context": Case(
        "answer", (AT + ":2", "fair", "context"), with_row(ANSWER, 2, ANSWER[1] | {"answers": ["fair"]})
    ),
    "answer-starts-elsewhere": Case(
        "answer",
        (AT + ":2", "'good'", "stands several times, but not at 99", "on_missing=drop"),
        with_row(ANSWER, 2, ANSWER[1] | {"context": "good is good", "start": [99]}),
    ),
    "answer-starts-without-number": Case(
        "answer", (AT + ":2", "['x']", "in characters"), with_row(ANSWER, 2, ANSWER[1] | {"start": ["x"]})
    ),
    "choice-out-of-range": Case("choose", (AT + ":2", "2", "choices"), with_row(CHOICE, 2, CHOICE[1] | {"answer": 2})),
    "choices-are-text": Case(
        "choose", (AT + ":1", "good or bad"), [{"question": "a", "choices": "good or bad", "answer": 0}]
    ),
    "target-missing": Case("seq2seq", (AT + ":2", "no column 'target'"), with_row(PAIRS, 2, {"source": "a"})),
    "target-empty": Case("seq2seq", (AT + ":2", "empty"), with_row(PAIRS, 2, {"source": "a", "target": ""})),
    # ------------------------------------------------------------------ conversations
    "role-missing": Case(
        "finetune",
        (AT + ":2: messages[0]", "names no role", "role"),
        with_row(CHAT, 2, {"messages": [{"content": "a"}]}),
    ),
    "role-unknown": Case(
        "finetune",
        (AT + ":2: messages[1]", "'asistant'", "no such role", "Did you mean 'assistant'"),
        with_row(CHAT, 2, chat(ASK, ("asistant", "b"))),
    ),
    "messages-empty": Case("finetune", (AT + ":2: messages", "no turns"), with_row(CHAT, 2, {"messages": []})),
    "messages-are-text": Case(
        "finetune", (AT + ":2: messages", "holds str", "not a list of turns"), with_row(CHAT, 2, {"messages": "hello"})
    ),
    "turns-out-of-order": Case(
        "finetune", (AT + ":2: messages[0]", "cannot stand at the beginning"), with_row(CHAT, 2, chat(SAY, ASK))
    ),
    "no-answer": Case("finetune", (AT + ":2", "no turn of the assistant to learn"), with_row(CHAT, 2, chat(ASK))),
    "answer-empty": Case(
        "finetune", (AT + ":2: messages[1]", "no content"), with_row(CHAT, 2, chat(ASK, ("assistant", " ")))
    ),
    "content-is-number": Case(
        "finetune", (AT + ":2: messages[1]", "not text"), with_row(CHAT, 2, chat(ASK, ("assistant", 4)))
    ),
    "all-labels-masked": Case(
        "finetune",
        ("data.max_length", "no example is left to train on", "answer cut", "Set it to"),
        [chat(("user", f"{i} is it good? " * 30), SAY) for i in range(5)],
        words=("data.validation_fraction=0",),
    ),
    "no-turn-weighs": Case(
        "finetune",
        (AT + ":1", "no turn of the assistant to learn"),
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}],
    ),
    "template-forgets": Case(
        "finetune",
        ("data.chat_template", "leaves out what user and assistant said"),
        CHAT,
        {"bad.jinja": foreign_template},
        ("data.chat_template={folder}/bad.jinja",),
    ),
    "template-no-jinja": Case(
        "finetune",
        ("data.chat_template", "line 1 is no Jinja"),
        CHAT,
        {"bad.jinja": "{% for %}"},
        ("data.chat_template={folder}/bad.jinja",),
    ),
    "template-missing": Case(
        "finetune", ("data.chat_template", "Did you mean 'chatml'"), CHAT, words=("data.chat_template=chatmll",)
    ),
    "column-template": Case(
        "finetune",
        (AT + ":1", "no column 'txt', which data.sources[0].template.user names", "Did you mean 'text'"),
        LABEL,
        words=("data.sources=[{path: {folder}/rows.jsonl, template: {user: '{txt}', assistant: '{label}'}}]",),
    ),
    # ------------------------------------------------------------------ lengths and vocabularies
    "overlong-strict": Case(
        "finetune",
        ("data.max_length = 64", AT + ":2", "tokens", "strict"),
        with_row(CHAT, 2, chat(ASK, ("assistant", "it is well. " * 50))),
        words=("data.strict=true",),
    ),
    "overlong-strict-text": Case(
        "classify",
        (AT + ":2", "tokens", "data.max_length="),
        with_row(LABEL, 2, {"text": "the plot is bad " * 50, "label": "bad"}),
        words=("data.strict=true",),
    ),
    "longer-than-the-model": Case(
        "finetune",
        ("data.max_length = 512", "only 128 positions", "Lower it to 128"),
        CHAT,
        words=("data.max_length=512",),
    ),
    "block-longer-than-the-model": Case(
        "pretrain", ("data.block_size = 4096", "positions", "Lower it to"), TEXT, words=("data.block_size=4096",)
    ),
    "block-longer-than-the-text": Case(
        "pretrain", ("data.block_size", "tokens"), [{"text": "good"}, {"text": "bad"}], words=("data.block_size=64",)
    ),
    "tokenizer-larger-than-the-model": Case(
        "finetune",
        ("tokenizer", "its largest id is 349", "embeds 300 tokens"),
        CHAT,
        {"tokenizer": larger_tokenizer},
        ("tokenizer={folder}/tokenizer",),
    ),
    "tokenizer-larger-than-the-classifier": Case(
        "classify",
        ("tokenizer", "its largest id is 349", "embeds 300 tokens"),
        LABEL,
        {"tokenizer": larger_tokenizer},
        ("tokenizer={folder}/tokenizer",),
    ),
    "vocabulary-too-small": Case(
        "pretrain",
        ("model.overrides.vocab_size", "100", "300"),
        TEXT,
        words=("model.overrides={num_hidden_layers: 1, vocab_size: 100}",),
    ),
    "tokenizer-without-end": Case(
        "finetune",
        ("tokenizer", "no end token", "eos_token"),
        CHAT,
        {"tokenizer": endless_tokenizer},
        ("tokenizer={folder}/tokenizer",),
    ),
    "tokenizer-torn": Case(
        "pretrain",
        ("tokenizer.path", "no tokenizer can be loaded"),
        TEXT,
        {"tokenizer": torn_tokenizer},
        ("tokenizer.path={folder}/tokenizer",),
    ),
    "tokenizer-missing": Case(
        "classify", ("tokenizer", "no tokenizer can be loaded"), LABEL, words=("tokenizer={folder}/nowhere",)
    ),
    "weights-torn": Case(
        "classify",
        ("torn/model.safetensors", "no whole file of weights", "bytes"),
        LABEL,
        {"torn": torn_weights},
        ("model={folder}/torn",),
    ),
    "model-missing": Case("finetune", ("model", "nowhere"), CHAT, words=("model={folder}/nowhere",)),
    # ------------------------------------------------------------------ configurations
    "key-unknown": Case("finetune", ("modle = ", "no such key", "Did you mean 'model'"), CHAT, words=("modle=x",)),
    "key-unknown-nested": Case(
        "pretrain", ("train.learning_rat", "Did you mean 'train.learning_rate'"), TEXT, words=("train.learning_rat=1",)
    ),
    "key-unknown-in-file": Case(
        "pretrain",
        ("config.yaml: data.block_sise", "Did you mean 'data.block_size'"),
        TEXT,
        {"config.yaml": "data:\n  block_sise: 16\n"},
        ("--config", "{folder}/config.yaml"),
    ),
    "yaml-broken": Case(
        "classify",
        ("config.yaml", "it is not YAML"),
        LABEL,
        {"config.yaml": "train: {a: [\n"},
        ("--config", "{folder}/config.yaml"),
    ),
    "yaml-binary": Case(
        "classify",
        ("config.yaml", "it is not YAML"),
        LABEL,
        {"config.yaml": b"\xff\xfe\0\0"},
        ("--config", "{folder}/config.yaml"),
    ),
    "config-is-folder": Case("classify", ("config", "directory"), LABEL, words=("--config", "{folder}")),
    "type-wrong": Case(
        "pretrain", ("train.batch_size = 'many'", "expected int"), TEXT, words=("train.batch_size=many",)
    ),
    "list-for-number": Case("pretrain", ("data.block_size", "expected int"), TEXT, words=("data.block_size=[1, 2]",)),
    "number-out-of-range": Case(
        "pretrain", ("train.learning_rate = -1.0", "above 0"), TEXT, words=("train.learning_rate=-1",)
    ),
    "number-not-finite": Case(
        "pretrain", ("train.learning_rate = nan", "finite"), TEXT, words=("train.learning_rate=.nan",)
    ),
    "number-infinite": Case(
        "finetune", ("train.weight_decay = inf", "finite"), CHAT, words=("train.weight_decay=.inf",)
    ),
    "share-not-a-share": Case(
        "classify", ("data.validation_fraction = 1.5", "below 1"), LABEL, words=("data.validation_fraction=1.5",)
    ),
    "share-not-finite": Case(
        "classify", ("data.validation_fraction = nan",), LABEL, words=("data.validation_fraction=.nan",)
    ),
    "trainer-key-unknown": Case(
        "finetune",
        ("train.trainer.label_smothing_factor", "Did you mean 'label_smoothing_factor'"),
        CHAT,
        words=("train.trainer={label_smothing_factor: 0.1}",),
    ),
    "optimizer-unknown": Case("finetune", ("train", "adamm"), CHAT, words=("train.optimizer=adamm",)),
    "preset-unknown": Case(
        "pretrain", ("model.preset = 'gtp2'", "Did you mean 'gpt2'"), TEXT, words=("model.preset=gtp2",)
    ),
    "architecture-contradicts": Case(
        "pretrain", ("model", "hidden_size"), TEXT, words=("model.overrides={hidden_size: 65}",)
    ),
    "options-contradict": Case(
        "finetune", ("resume", "overwrite=true is given too"), CHAT, words=("--resume", "--overwrite")
    ),
    "metric-does-not-fit": Case("classify", ("judge.metric = 'mse'", "macro_f1"), LABEL, words=("judge.metric=mse",)),
    "token-in-configuration": Case(
        "finetune",
        ("train.trainer.hub_token = '…'", "recipes/push.py"),
        CHAT,
        words=("train.trainer={hub_token: hf_abcdefghijklmnop}",),
    ),
    # ------------------------------------------------------------------ recipes that use a finished model
    "predict-without-column": Case(
        "predict",
        (AT + ":1", "no column 'text'", "Did you mean 'txt'"),
        [{"txt": "a"}],
        {"three": classifier},
        ("model={folder}/three",),
    ),
    "predict-latin-1": Case(
        "predict",
        ("rows.jsonl", "is not utf-8"),
        b'{"text": "\xe9t\xe9"}\n',
        {"three": classifier},
        ("model={folder}/three",),
    ),
    "predict-without-head": Case("predict", ("model", "CausalLM"), LABEL),
    "prompts-empty": Case(
        "generate", ("prompt_file", "it holds no prompt"), "", words=("prompt_file={folder}/rows.jsonl",)
    ),
    "prompts-latin-1": Case(
        "generate", ("prompt_file", "utf-8"), b"\xe9t\xe9\n", words=("prompt_file={folder}/rows.jsonl",)
    ),
    "prompt-too-long": Case(
        "generate", ("prompt", "pass the model's 128 positions"), words=("prompt=" + "the plot " * 99,)
    ),
    # ------------------------------------------------------------------ the run's folder
    "output-is-file": Case(
        "finetune",
        ("output_dir", "it is a file", "Give a folder"),
        CHAT,
        {"taken": "x"},
        ("output_dir={folder}/taken",),
    ),
    "output-below-file": Case(
        "pretrain", ("output_dir", "Not a directory"), TEXT, {"taken": "x"}, ("output_dir={folder}/taken/run",)
    ),
    "output-holds-other-things": Case(
        "pretrain",
        ("output_dir", "not empty and holds no run"),
        TEXT,
        {"mine": lambda path, base: (path.mkdir(), (path / "notes.txt").write_text("x"))},
        ("output_dir={folder}/mine",),
    ),
    "resume-without-run": Case("finetune", ("resume", "holds no run"), CHAT, words=("--resume",)),
}

# Kinds that differ little from another one of the table: the long run has them, the gate does not.
_ALIKE = """
    folder-without-files pattern-without-files encoding-unknown indented-array object-for-array
    csv-header-only not-gzip row-too-deep column-missing-pretrain rows-of-another-format
    unknown-format text-is-null text-empty label-null label-nan
    text-label-in-regression numbers-beside-texts one-label-only all-rows-the-same tag-is-fraction
    tags-are-text answer-starts-without-number choices-are-text target-missing target-empty
    messages-are-text turns-out-of-order answer-empty content-is-number no-turn-weighs
    template-no-jinja template-missing overlong-strict-text block-longer-than-the-model block-longer-than-the-text
    tokenizer-missing tokenizer-without-end model-missing key-unknown yaml-binary
    config-is-folder list-for-number number-infinite share-not-finite preset-unknown
    optimizer-unknown metric-does-not-fit output-below-file predict-latin-1 prompts-empty
    prompts-latin-1 prompt-too-long torn-parquet csv-open-quote only-blank-text
"""
LONG = frozenset(_ALIKE.split())
