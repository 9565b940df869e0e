"""Questions with their answers: prompt and completion, as fine-tuning takes them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

from gpt_finetune.packaged.rows import Rows, write

INSURANCE_FILES = ("train.json.gz", "valid.json.gz", "test.json.gz", "answers.json.gz")
FRESH_FILE = "FreshQA_v12182024.csv"


def insurance(source: Path, folder: Path) -> None:
    """Write `zh.jsonl` and `en.jsonl` (prompt, completion, domain, split): a row for each answer to a question.

    Args:
        source: Questions of three splits with numbers of answers, and the answers; each in both languages.
        folder: Where to.
    """
    answers = _load(source / "answers.json.gz")
    files = {"zh.jsonl": Rows(), "en.jsonl": Rows()}
    for split in ("train", "valid", "test"):
        for question in _load(source / f"{split}.json.gz").values():
            for number in question["answers"]:
                for name, rows in files.items():
                    language = name.partition(".")[0]
                    prompt = _plain(question[language])
                    completion = _plain(answers.get(number, {}).get(language, ""))
                    if prompt and completion:
                        rows.add(prompt=prompt, completion=completion, domain=question["domain"], split=split)
                    else:
                        rows.dropped["no answer" if prompt else "no question"] += 1
    write(folder, files)


def fresh(source: Path, folder: Path) -> None:
    """Write `freshqa.jsonl` (prompt, completion, answers, split, false_premise) of questions asked in December 2024.

    The completion is the first of the answers that count as right. Where the question presumes something wrong, it
    says so.

    Args:
        source: A table with a warning above its header.
        folder: Where to.
    """
    rows = Rows()
    with source.open(encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    header = next(number for number, row in enumerate(table) if "question" in row)
    for row in (dict(zip(table[header], cells, strict=False)) for cells in table[header + 1 :]):
        answers = [text for number in range(10) if (text := row.get(f"answer_{number}", "").strip())]
        prompt = row.get("question", "").strip()
        if prompt and answers:
            wrong = row["false_premise"] == "TRUE"
            rows.add(
                prompt=prompt, completion=answers[0], answers=answers, split=row["split"].lower(), false_premise=wrong
            )
        else:
            rows.dropped["no answer" if prompt else "no question"] += 1
    write(folder, {"freshqa.jsonl": rows})


def _load(file: Path) -> dict[str, Any]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return json.load(stream)


def _plain(text: str) -> str:
    """Put one space where there were several, or one that does not break."""
    return " ".join(text.split())
