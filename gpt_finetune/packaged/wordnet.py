"""What WordNet's words are a kind, a part or a member of, where their definitions name it; and questions on that.

The labels are WordNet's own pointers, not found by a pattern; what is silver is which words of a definition mean the
pointer's target: those that are written like it, and of several the first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_finetune.packaged.rows import Rows, write

NOUNS = "data.noun"
# WordNet's sign of a pointer -> its name, and the question that it answers
POINTERS = {
    "@": ("is_a", "What is {} a kind of?"),
    "@i": ("instance_of", "What kind of thing is {}?"),
    "#p": ("part_of", "What is {} part of?"),
    "#m": ("member_of", "What is {} a member of?"),
}
COMMONEST, KEPT = "is_a", 4  # one question in so many of the commonest relation, which would drown the others
WITHOUT = 3  # one question without an answer for so many with one
EXAMPLE = re.compile(r';?\s*"')  # what follows a definition


@dataclass(frozen=True)
class Synset:
    """A meaning: its words, its definition, and where its pointers lead."""

    words: list[str]
    gloss: str
    pointers: list[tuple[str, str]]


@dataclass(frozen=True)
class Named:
    """What a definition names of a relation: the target's words as they stand in the text, and where."""

    head: str
    text: str
    relation: str
    question: str
    answers: list[str]
    starts: list[int]


def relations(source: Path, folder: Path) -> None:
    """Write `relations.jsonl`: text, head, relation, tail; and `qa.jsonl`: question, context, answers, start.

    A text is a word and its definition, `Saginaw: a town in east central Michigan`. Of a relation with several targets
    in the text, each is a row of the former and an answer to one question of the latter. A question without an answer
    asks of a word what only another word's text says.

    Args:
        source: The file `data.noun`.
        folder: Where to.
    """
    triples, questions = Rows(), Rows()
    chance = random.Random("wordnet")
    asked: list[Named] = []
    for named in _find(_read(source / NOUNS), triples):
        for tail in dict.fromkeys(named.answers):
            triples.add(text=named.text, head=named.head, relation=named.relation, tail=tail)
        if named.relation == COMMONEST and chance.randrange(KEPT):
            questions.dropped[f"{COMMONEST}, beyond one in {KEPT}"] += 1
        else:
            asked.append(named)
    for number, named in enumerate(asked):
        context: dict[str, Any] = {"context": named.text}
        questions.add(question=named.question, **context, answers=named.answers, start=named.starts)
        other = chance.choice(asked)
        if number % WITHOUT == 0 and other.head.casefold() not in named.text.casefold():
            questions.add(question=other.question, **context, answers=[], start=[])
    write(folder, {"relations.jsonl": triples, "qa.jsonl": questions})


def _read(file: Path) -> dict[str, Synset]:
    """Return all meanings, by their place in the file (see wndb(5WN) in WordNet's manual)."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, _, gloss = line.partition("|")
        fields = data.split()
        end = 4 + 2 * int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4:end:2]]
        pointers = [fields[i : i + 3] for i in range(end + 1, end + 1 + 4 * int(fields[end]), 4)]
        nouns = [(sign, place) for sign, place, part in pointers if part == "n"]
        found[fields[0]] = Synset(words, EXAMPLE.split(gloss, maxsplit=1)[0].strip(), nouns)
    return found


def _find(synsets: dict[str, Synset], rows: Rows) -> Iterator[Named]:
    """Return what each definition names of each relation, and count the pointers whose target it does not name."""
    for synset in synsets.values():
        head = synset.words[0]
        text = f"{head}: {synset.gloss}"
        for sign, (relation, question) in POINTERS.items():
            spans: set[tuple[int, int]] = set()
            for target in (synsets[place] for pointer, place in synset.pointers if pointer == sign):
                found = _spans(text, len(head) + 1, target.words)
                spans.update(found)
                rows.dropped[f"{relation}, not named"] += not found
            if spans:
                answers = [text[begin:end] for begin, end in sorted(spans)]
                starts = [begin for begin, _ in sorted(spans)]
                yield Named(head, text, relation, question.format(head), answers, starts)


def _spans(text: str, begin: int, words: list[str]) -> list[tuple[int, int]]:
    """Return where the longest of some words that stands in a text does."""
    for word in sorted(words, key=len, reverse=True):
        matches = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text[begin:], re.IGNORECASE)
        if spans := [(begin + match.start(), begin + match.end()) for match in matches]:
            return spans
    return []
