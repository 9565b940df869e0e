"""Commands to a house with their intent and slots, drawn from a voice assistant's templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from gpt_finetune.packaged.fillers import FILLERS, THINGS
from gpt_finetune.packaged.rows import Rows, write
from gpt_finetune.packaged.templates import Sampler

LANGUAGES = {"en.json": "en", "zh-CN.json": "zh"}
MOST = 400  # texts of one intent: some templates have millions of sentences, others one
DRAWS = 20 * MOST  # an intent with fewer sentences than MOST has shown almost all by then
DOMAIN, NAME = "domain", "name"


def commands(source: Path, folder: Path) -> None:
    """Write `en.jsonl` and `zh.jsonl`: text, label (the intent), slots and their values as the text has them, template.

    Texts of one template differ in little but names: a fair test has none of a template that was trained on. The same
    texts every time: each intent has a chance of its own, seeded by its name.

    Args:
        source: A file of templates for each language.
        folder: Where to.
    """
    files = {}
    for file, language in LANGUAGES.items():
        content = json.loads((source / file).read_text(encoding="utf-8"))
        rows = files[f"{language}.jsonl"] = Rows()
        for intent in sorted(content["intents"]):
            _draw(intent, content, language, rows)
    write(folder, files)


def _draw(intent: str, content: dict[str, Any], language: str, rows: Rows) -> None:
    """Add up to `MOST` different texts of one intent."""
    random = Random(f"{language} {intent}")
    templates = [(text, block) for block in content["intents"][intent]["data"] for text in block["sentences"]]
    kinds: Sequence[str] = ()  # of the thing that the drawn template names

    def value(name: str) -> str:
        if name == NAME:
            return random.choice(THINGS[language][random.choice(kinds)])
        if name in FILLERS[language]:
            return random.choice(FILLERS[language][name])
        return _value(content["lists"][name], random)

    sampler = Sampler(content["expansion_rules"], value, random)
    seen: set[str] = set()
    for _ in range(DRAWS):
        if len(seen) == MOST:
            break
        template, block = random.choice(templates)
        kinds = _kinds(block, language)
        text, slots = sampler.draw(template)
        if text in seen:
            continue
        seen.add(text)
        rows.add(text=text, label=intent, slots=slots, template=template)


def _kinds(block: dict[str, Any], language: str) -> list[str]:
    """Return the kinds of things that a block of templates is about; all kinds if it does not say."""
    asked = block.get("requires_context", {}).get(DOMAIN) or block.get("slots", {}).get(DOMAIN) or []
    kinds = [asked] if isinstance(asked, str) else asked
    return [kind for kind in kinds if kind in THINGS[language]] or list(THINGS[language])


def _value(values: dict[str, Any], random: Random) -> str:
    """Draw from a list of the file: a range of numbers, or given templates."""
    if "range" in values:
        bounds = values["range"]
        return str(random.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
    drawn = random.choice(values["values"])
    return drawn["in"] if isinstance(drawn, dict) else drawn
