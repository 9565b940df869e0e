"""Poems, as text to learn a language from, and what is told of the poets."""

from __future__ import annotations

import json
from pathlib import Path

from gpt_finetune.packaged.biographies import lives
from gpt_finetune.packaged.rows import Rows, write

DYNASTIES = ("tang", "song")


def poems(source: Path, folder: Path) -> None:
    """Write `tang.jsonl` and `song.jsonl`: text (a verse a line), title, author; and the files of `lives`.

    Args:
        source: Files `poet.DYNASTY.NUMBER.json`, each a list of poems, and `authors.song.json`.
        folder: Where to.
    """
    files = {}
    for dynasty in DYNASTIES:
        rows = files[f"{dynasty}.jsonl"] = Rows()
        for file in sorted(source.glob(f"poet.{dynasty}.*.json"), key=lambda file: int(file.name.split(".")[2])):
            for poem in json.loads(file.read_text(encoding="utf-8")):
                text = "\n".join(verse.strip() for verse in poem["paragraphs"] if verse.strip())
                if text:
                    rows.add(text=text, title=poem["title"].strip(), author=poem["author"].strip())
                else:
                    rows.dropped["empty"] += 1
    write(folder, files | lives(source))
