"""A small tokenizer, and `prepare` with a cache of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import as_source, make_texts

from gpt_finetune.data.config import DataConfig, TokenizerConfig
from gpt_finetune.data.prepare import PreparedData, prepare
from gpt_finetune.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer of 320 tokens."""
    return train_tokenizer(make_texts(200), TokenizerConfig(vocab_size=320))


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same tokenizer on disk."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path: Path, tokenizer_folder: str) -> Callable[..., PreparedData]:
    """Return `prepare` on files, with the small tokenizer and a cache in tmp_path; lists of texts become jsonl."""

    def prepared(*sources: Any, tokenizer: TokenizerConfig | None = None, **options: Any) -> PreparedData:
        options = {"block_size": 16, "cache_dir": str(tmp_path / "cache"), **options}
        if sources:
            options["sources"] = [as_source(s, tmp_path / f"source{i}.jsonl") for i, s in enumerate(sources)]
        if "validation" in options:
            held_out = enumerate(options["validation"])
            options["validation"] = [as_source(s, tmp_path / f"held_out{i}.jsonl") for i, s in held_out]
        return prepare(DataConfig(**options), tokenizer or TokenizerConfig(path=tokenizer_folder))

    return prepared
