"""Words with a tag each."""

from __future__ import annotations

from pathlib import Path

from gpt_finetune.packaged.rows import Rows, write

# Names of the People's Daily corpus (1998, Peking University's tags): people, places, organisations.
ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
OUTSIDE = "O"


def entities(file: Path) -> Rows:
    """Read lines of `word/tag` as words and BIO tags.

    A tagged word is a name by itself, but for a person's: family name and given name are two words there, so that a
    word of one character opens a name that the next, if it is a person's too, ends. (A family name of two characters
    stands apart from the given name: 0.2% of the people.)

    Args:
        file: Words and tags, separated by spaces.
    """
    rows = Rows()
    for line in file.read_text(encoding="utf-8").splitlines():
        if pairs := _read(line, rows):
            words, kinds = pairs
            rows.add(words=words, tags=_bio(words, kinds))
    return rows


def parts_of_speech(source: Path, folder: Path) -> None:
    """Write `pos.jsonl` (words, tags, genre): the Brown corpus, a row for each sentence, tags as they stand there.

    Args:
        source: Files of sentences, and `cats.txt`, which says the genre of each.
        folder: Where to.
    """
    rows = Rows()
    for entry in (source / "cats.txt").read_text(encoding="utf-8").splitlines():
        file, genre = entry.split()
        for line in (source / file).read_text(encoding="utf-8").splitlines():
            if line.strip() and (pairs := _read(line, rows)):  # two blank lines stand between sentences
                words, tags = pairs
                rows.add(words=words, tags=tags, genre=genre)
    write(folder, {"pos.jsonl": rows})


def _read(line: str, rows: Rows) -> tuple[list[str], list[str]] | None:
    """Return the words and tags of a line; count one that has none, or a word without."""
    pairs = [token.rpartition("/") for token in line.split()]
    if not pairs:
        rows.dropped["empty"] += 1
        return None
    if not all(word and tag for word, _, tag in pairs):
        rows.dropped["malformed"] += 1
        return None
    return [word for word, _, _ in pairs], [tag for _, _, tag in pairs]


def _bio(words: list[str], kinds: list[str]) -> list[str]:
    tags: list[str] = []
    open_name = False  # a family name, whose given name may follow
    for word, kind in zip(words, kinds, strict=True):
        name = ENTITIES.get(kind)
        inside = open_name and kind == "nr"
        open_name = kind == "nr" and len(word) == 1 and not inside
        tags.append(OUTSIDE if name is None else f"{'I' if inside else 'B'}-{name}")
    return tags
