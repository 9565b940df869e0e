"""The same text in several languages."""

from __future__ import annotations

import json
from pathlib import Path

from gpt_finetune.packaged.rows import Rows, write

LANGUAGES = ("bn", "en", "es", "fr", "id", "ru", "sv", "tr", "ur", "zh")
TRANSLATIONS = {f"quran_{language}.json": language for language in LANGUAGES}


def verses(source: Path, folder: Path) -> None:
    """Write `verses.jsonl`: chapter, verse, the Arabic text as ar, and a column for each of `LANGUAGES`.

    Args:
        source: A file of chapters for each language, with the original beside the translation.
        folder: Where to.
    """
    found: dict[tuple[int, int], dict[str, str]] = {}
    for file, language in TRANSLATIONS.items():
        for chapter in json.loads((source / file).read_text(encoding="utf-8")):
            for verse in chapter["verses"]:
                texts = found.setdefault((chapter["id"], verse["id"]), {"ar": verse["text"].strip()})
                texts[language] = verse["translation"].strip()
    rows = Rows()
    for (number, verse), texts in found.items():
        if len(texts) == len(LANGUAGES) + 1 and all(texts.values()):
            rows.add(chapter=number, verse=verse, **texts)
        else:
            rows.dropped["not in every language"] += 1
    write(folder, {"verses.jsonl": rows})
