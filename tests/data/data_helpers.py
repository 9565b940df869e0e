"""Texts to make corpora of, and ways to read back what a dataset teaches."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gpt_finetune.data.config import SourceConfig

WORDS = ["the", "cat", "sat", "while", "天气", "很好", "我们", "去", "公园", "def", "return", "1984", "naïve", "🙂"]


def make_texts(count: int, seed: int = 0, words: tuple[int, int] = (5, 60)) -> list[str]:
    """Return texts that all differ."""
    chance = random.Random(seed)
    return [f"{i} " + " ".join(chance.choices(WORDS, k=chance.randint(*words))) for i in range(count)]


def write_jsonl(file: Path, texts: list[str]) -> Path:
    """Write one row a text."""
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return file


def as_source(source: Any, file: Path) -> SourceConfig:
    """Make a source of a config, a path, a list of texts, or a (list of texts, weight) pair."""
    if isinstance(source, SourceConfig):
        return source
    weight = 1.0
    if isinstance(source, tuple):
        source, weight = source
    return SourceConfig(str(write_jsonl(file, source) if isinstance(source, list) else source), weight)


def targets(dataset: Any) -> list[int]:
    """Return every token that is a target under the model's shift, row by row."""
    found: list[int] = []
    for row in iterate(dataset):
        found += [int(label) for label in row["labels"][1:] if label != -100]
    return found


def iterate(dataset: Any) -> Any:
    """Iterate a map-style or an iterable dataset."""
    return (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)


def documents(dataset: Any, tokenizer: Any) -> list[str]:
    """Return the texts that a dataset teaches, end token by end token."""
    found: list[list[int]] = [[]]
    for token in targets(dataset):
        if token == tokenizer.eos_token_id:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == [], "the last document has no end token"
    return [tokenizer.decode(ids) for ids in found]
