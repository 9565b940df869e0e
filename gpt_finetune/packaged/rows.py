"""Rows of a data set on their way to a file, with a count of what was left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COUNTS = "counts.json"


@dataclass
class Rows:
    """The rows of one file.

    Args:
        kept: The rows, each a mapping of columns.
        dropped: How many rows of the source were left out, by reason.
    """

    kept: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, **columns: Any) -> None:
        """Keep a row."""
        self.kept.append(columns)

    def counts(self) -> dict[str, Any]:
        """Return how many rows there are, of which labels, and how many were left out."""
        labels = Counter(row["label"] for row in self.kept if "label" in row)
        named = {"labels": dict(sorted(labels.items()))} if labels else {}
        return {"rows": len(self.kept), **named, "dropped": dict(sorted(self.dropped.items()))}


def write(folder: Path, files: Mapping[str, Rows]) -> None:
    """Write each file as JSON lines, and the counts of all of them into `counts.json` beside.

    Args:
        folder: Where to.
        files: Name of each file, and its rows.
    """
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.kept)
        (folder / name).write_text("".join(lines), encoding="utf-8")
    counts = {name: rows.counts() for name, rows in files.items()}
    (folder / COUNTS).write_text(json.dumps(counts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
