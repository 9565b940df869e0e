"""News articles with their topic."""

from __future__ import annotations

from pathlib import Path

from gpt_finetune.packaged.rows import Rows, write


def topics(source: Path, folder: Path) -> None:
    """Write `news.jsonl` (text, label, title): the folder is the topic, the first line the headline, not in the text.

    Args:
        source: A folder for each topic, a file for each article.
        folder: Where to.
    """
    rows = Rows()
    for file in sorted(source.glob("*/*.txt")):
        content = file.read_bytes()
        try:
            article = content.decode("utf-8")
        except UnicodeDecodeError:  # one article has a pound sign from an older age
            article = content.decode("cp1252", errors="replace")
        title, *body = [line.strip() for line in article.splitlines() if line.strip()] or [""]
        if body:
            rows.add(text="\n".join(body), label=file.parent.name, title=title)
        else:
            rows.dropped["empty"] += 1
    write(folder, {"news.jsonl": rows})
