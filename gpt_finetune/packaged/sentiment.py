"""Reviews and short texts with the feeling that they express."""

from __future__ import annotations

import html
from pathlib import Path

from gpt_finetune.data.splitting import place_of, text_key
from gpt_finetune.packaged import tagging
from gpt_finetune.packaged.download import tarred
from gpt_finetune.packaged.rows import Rows, write

# Of the mean of people's judgements, from -4 to 4. Nearer to 0 they saw no feeling, or did not agree.
NEUTRAL = 0.5

_SNIPPETS = {
    "movieReviewSnippets_GroundTruth.txt": "movie.jsonl",
    "amazonReviewSnippets_GroundTruth.txt": "product.jsonl",
    "tweets_GroundTruth.txt": "tweets.jsonl",
}
_REVIEWS = {"sentiment/pos.txt": "positive", "sentiment/neg.txt": "negative"}
TAGGED = "tag/199801.txt"
TEST_SHARE = 0.1
CHINESE_FILES = (*_REVIEWS, TAGGED)


def chinese(source: Path, folder: Path) -> None:
    """Write `sentiment.jsonl` (text, label) from a file of reviews for each label, and `ner.jsonl` from tagged news.

    The reviews stand in two files more, so that a language model can learn from some without seeing the others:
    `sentiment-test.jsonl` has a tenth of the distinct texts, `sentiment-train.jsonl` the rest.
    """
    reviews = Rows()
    for file, label in _REVIEWS.items():
        for line in (source / file).read_text(encoding="utf-8").splitlines():
            if text := line.strip():
                reviews.add(text=text, label=label)
            else:
                reviews.dropped["empty"] += 1
    train, test = _split(reviews)
    split = {"sentiment-train.jsonl": train, "sentiment-test.jsonl": test}
    write(folder, {"sentiment.jsonl": reviews, **split, "ner.jsonl": tagging.entities(source / TAGGED)})


def _split(rows: Rows) -> tuple[Rows, Rows]:
    """Part rows by the hash of their text: copies of a text stay together, and so do its other spellings."""
    places = [place_of(text_key(row["text"]), 0) for row in rows.kept]
    distinct = sorted(set(places))
    first = distinct[round(TEST_SHARE * len(distinct))]
    sides = Rows(), Rows()
    for row, place in zip(rows.kept, places, strict=True):
        sides[place < first].add(**row)
    return sides


def judged(source: Path, folder: Path) -> None:
    """Write texts whose feeling people judged: text, label, and score, their mean from -4 to 4.

    Those nearer to 0 than `NEUTRAL` are left out. Characters that were escaped for HTML are written as such.

    Args:
        source: An archive of files with an id, a score and a text in each line.
        folder: Where to.
    """
    files = {}
    for path, stream in tarred(source):
        if path in _SNIPPETS:
            files[_SNIPPETS[path]] = _judged(stream.read().decode("utf-8-sig"))
    assert len(files) == len(_SNIPPETS), f"{source.name} has no {set(_SNIPPETS.values()) - set(files)}"
    write(folder, files)


def _judged(content: str) -> Rows:
    rows = Rows()
    for line in content.split("\n"):
        if not line.strip():
            continue
        try:
            _, number, text = line.strip("\r").split("\t")
            score = float(number)
        except ValueError:
            rows.dropped["malformed"] += 1
            continue
        text = html.unescape(text).strip()
        if not text:
            rows.dropped["empty"] += 1
        elif not abs(score) >= NEUTRAL:
            rows.dropped["near zero"] += 1
        else:
            rows.add(text=text, label="positive" if score > 0 else "negative", score=score)
    return rows
