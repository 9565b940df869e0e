"""Conversations, as messages."""

from __future__ import annotations

import json
import logging
from itertools import cycle
from pathlib import Path

import yaml

logger = logging.getLogger(__name__)


def conversations_from_yaml(source: Path, folder: Path) -> None:
    """Write each language's conversations as one file of messages, `english.jsonl` and so on.

    Whoever begins is the user, and the two take turns; a last turn that nobody answers is cut off. Entries that are no
    list of turns, or of which no answer is left, are left out.
    """
    kept, cut, left_out = 0, 0, 0
    for language in sorted(path for path in source.iterdir() if path.is_dir()):
        rows = []
        for file in sorted(language.glob("*.yml")):
            # The base loader leaves every turn the text that was written: 42, yes and 1999-12-31 among them.
            for turns in yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)["conversations"]:
                said = turns if isinstance(turns, list) and all(isinstance(t, str) and t.strip() for t in turns) else []
                if len(said) < 2:
                    left_out += 1
                    continue
                cut += len(said) % 2
                pairs = zip(cycle(("user", "assistant")), said[: len(said) // 2 * 2], strict=False)
                messages = [{"role": role, "content": text.strip()} for role, text in pairs]
                rows.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        (folder / f"{language.name}.jsonl").write_text("".join(rows), encoding="utf-8")
        kept += len(rows)
    logger.info("%d conversations, %d of them without their last turn; %d entries left out.", kept, cut, left_out)
