"""Short lives of the Song dynasty's poets, what they say of birthplace and examination, and questions on that.

The labels are silver: patterns find them. The lives are written to one scheme, `曾致堯（九四七～一○一二），字正臣，撫州
南豐（今屬江西）人。太宗太平興國八年（九八三）進士。`, and where that is left, nothing is found.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from gpt_finetune.packaged.rows import Rows

FILE = "authors.song.json"
_PLACE = r"[^，。、（）《》；：]"
# column -> (where it stands in a life, what a poet is asked, what a life has not that surely does not say it)
FACTS = {
    "courtesy_name": (r"，字([^，。（）；]{1,3})(?=[，。（])", "{}字什麽？", "字"),
    "birthplace": (rf"(?:^|(?<=[，。）]))({_PLACE}{{1,6}})（今[^（）]{{2,16}}）人", "{}是哪裏人？", "人"),
    "degree_year": (
        r"([^，。（）；、]{2,10}年)（[○〇一二三四五六七八九十]{3,4}）(?:進士|[舉登第擢]進士)",
        "{}是哪一年的進士？",
        "進士",
    ),
}
UNDATED = re.compile(r"[間中時初末]進士|進士及第")  # an examination of which no year is known
DATED = re.compile(r"年[^，。]*(?:進士|登第|及第|擢第)")
NOT_A_PLACE = re.compile(r"[時年間初末人]|世爲|[一或又]曰|祖籍|[爲居]")
WITHOUT = 3  # one question without an answer for so many with one


def lives(source: Path) -> dict[str, Rows]:
    """Return `biographies.jsonl`: text, name, the columns of `FACTS`, slots; and `qa-zh.jsonl`.

    A column has the words of the text, or null; slots are those that have some. Rows of the latter have question,
    context, answers and start; a quarter has no answer: the text does not speak of it, or of an examination without
    its year.

    Args:
        source: The folder of `authors.song.json`.
    """
    told, questions = Rows(), Rows()
    chance, known, without = random.Random("biographies"), set(), []
    for poet in json.loads((source / FILE).read_text(encoding="utf-8")):
        name, text = poet["name"].strip(), poet["desc"].strip()
        if not text or text in known:
            told.dropped["duplicate" if text else "empty"] += 1
            continue
        known.add(text)
        facts: dict[str, str | None] = {}
        for column, (pattern, question, _) in FACTS.items():
            match = re.search(pattern, text)
            if match and column == "birthplace" and NOT_A_PLACE.search(match[1]):
                match = None
            facts[column] = match[1] if match else None
            row: dict[str, Any] = {"question": question.format(name), "context": text}
            if match:
                questions.add(**row, answers=[match[1]], start=[match.start(1)])
            elif _is_silent(column, text):
                without.append(row)
        told.add(text=text, name=name, **facts, slots={name: value for name, value in facts.items() if value})
    few = len(questions.kept) // WITHOUT
    questions.dropped["without an answer, beyond a quarter"] = max(0, len(without) - few)
    for row in chance.sample(without, min(few, len(without))):
        questions.add(**row, answers=[], start=[])
    return {"biographies.jsonl": told, "qa-zh.jsonl": questions}


def _is_silent(column: str, text: str) -> bool:
    """Tell whether a life surely does not say something, rather than in other words."""
    undated = column == "degree_year" and UNDATED.search(text) and not DATED.search(text)
    return bool(undated) or FACTS[column][2] not in text
