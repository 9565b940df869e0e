"""Say of each row of a file what a finished model makes of it, whatever its task: JSON lines, in the file's order.

    python recipes/predict.py --model runs/sentiment-en --input.path texts.txt
    python recipes/predict.py --model runs/sentiment-en --input.path reviews.csv text_column=review output=out.jsonl

A line of a plain-text file is a row. A classifier takes texts, and says what `pipeline("text-classification")` does; a
tagger takes texts or lists `words`, of any length, and says a tag a word, where `pipeline("token-classification")` says
one a token; a model that answers takes rows with `question` and `context`, one that chooses rows with `question` and a
list `choices`; an encoder-decoder takes texts, and says what it writes of each.
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
    """Run a model over the rows of a file.

    Args:
        model: Folder or Hub id of a model that classifies, tags, answers, chooses or writes of one text another, or
            folder of an adapter that a run left.
        input: The rows.
        text_column: Column of the text, where there are columns.
        batch_size: Rows a forward pass; does not change the scores.
        max_length: Tokens that the model reads at once; a classifier does not see what is beyond. null: as many as in
            training.
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
    from gpt_finetune.tasks.prediction import load_predictor, read_records

    records = read_records(config.input)
    predict = load_predictor(config.model, config.text_column)
    answers = predict(records, config.batch_size, config.max_length)
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    if config.output:
        Path(config.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    return answers


if __name__ == "__main__":
    run(main, PredictConfig)
