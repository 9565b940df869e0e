"""A small tokenizer, and `prepare_examples` on rows that a test gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.data.tokenizer import train_tokenizer
from gpt_finetune.supervised import ExamplesConfig, ExampleSourceConfig
from gpt_finetune.supervised.prepare import PreparedExamples, prepare_examples

TEXTS = ["what is the answer to it all? the answer is forty two.\n" * 20, "你好，世界！天气很好，我们去公园吧。" * 20]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of 400 tokens, without a chat template."""
    return train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=400))


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: Any) -> Callable[..., PreparedExamples]:
    """Return `prepare_examples` on lists of rows, each written as a jsonl file, or on sources as they are."""

    def write(rows: Any, name: str) -> ExampleSourceConfig:
        if isinstance(rows, ExampleSourceConfig):
            return rows
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ExampleSourceConfig(str(file))

    def made(*sources: Any, validation: Any = (), tokenizer: Any = tokenizer, **options: Any) -> PreparedExamples:
        options = {"validation_fraction": 0.0, "packing": False, "chat_template": "chatml", **options}
        config = ExamplesConfig(
            sources=[write(rows, f"rows{i}.jsonl") for i, rows in enumerate(sources)],
            validation=[write(rows, f"held_out{i}.jsonl") for i, rows in enumerate(validation)],
            **options,
        )
        return prepare_examples(config, tokenizer)

    return made
