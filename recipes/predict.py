"""Say of each text in a file what a classifier makes of it: JSON lines with label and scores, in the file's order.

    python recipes/predict.py --model runs/sentiment-en --input.path texts.txt
    python recipes/predict.py --model runs/sentiment-en --input.path reviews.csv text_column=review output=out.jsonl

A line of a plain-text file is a text; of other files, a row is. `pipeline("text-classification")` gives the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import RowSourceConfig


@dataclass
class PredictConfig:
    """Classify the texts of a file.

    Args:
        model: Folder or Hub id of a classifier, or folder of an adapter that recipes/classify.py left.
        input: The texts.
        text_column: Column of the text, where there are columns.
        batch_size: Texts a forward pass; does not change the scores.
        max_length: Tokens of a text; what is longer loses its end. null: as many as in training.
        output: JSON-lines file for the answers; null prints them.
    """

    model: str = "runs/classify"
    input: RowSourceConfig = field(default_factory=RowSourceConfig)
    text_column: str = "text"
    batch_size: int = 16
    max_length: int | None = None
    output: str | None = None


def main(config: PredictConfig) -> list[dict[str, object]]:
    """Run the recipe; returns the answers."""
    config.input.validate("input")
    for name in ("batch_size", "max_length"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise InputError(name, value, "it must be at least 1", "Raise it")
    from gpt_finetune.tasks.heads import load_classifier
    from gpt_finetune.tasks.prediction import predict, read_texts

    texts, origins = read_texts(config.input, config.text_column)
    model, tokenizer, labels = load_classifier(config.model)
    answers = predict(model, tokenizer, labels, texts, origins, config.batch_size, config.max_length)
    lines = [
        json.dumps({"text": text, **answer}, ensure_ascii=False) for text, answer in zip(texts, answers, strict=True)
    ]
    if config.output:
        Path(config.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    return answers


if __name__ == "__main__":
    run(main, PredictConfig)
