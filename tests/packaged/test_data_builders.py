"""What each builder makes of a tiny source of the same layout; what is broken is counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpt_finetune.packaged import intents, news, parallel, poetry, questions, sentiment, tagging
from gpt_finetune.packaged.fillers import FILLERS, THINGS


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def put(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def labels(some: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["label"] for row in some).items()))


def counts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "counts.json").read_text(encoding="utf-8"))


def test_chinese_reviews_and_names(source, folder):
    put(source / "sentiment/pos.txt", "很好\n\n 值得买 \n很好\n")
    put(source / "sentiment/neg.txt", "太差了\r\n")
    tagged = ["江/nr  泽民/nr  在/p  北京/ns  上海/ns  会见/v  柴可夫斯基/nr  新华社/nt  １/2/m", "坏", ""]
    tagged += ["李/nr 鹏/nr 乔/nr 石/nr 郭/nr 说/v 张/nr"]
    put(source / "tag/199801.txt", "\n".join(tagged))
    sentiment.chinese(source, folder)
    assert rows(folder / "sentiment.jsonl") == [
        {"text": "很好", "label": "positive"},
        {"text": "值得买", "label": "positive"},
        {"text": "很好", "label": "positive"},  # twice, as it came
        {"text": "太差了", "label": "negative"},
    ]
    train, test = rows(folder / "sentiment-train.jsonl"), rows(folder / "sentiment-test.jsonl")
    assert sorted(map(str, train + test)) == sorted(map(str, rows(folder / "sentiment.jsonl")))
    first, second = rows(folder / "ner.jsonl")
    assert first["words"] == ["江", "泽民", "在", "北京", "上海", "会见", "柴可夫斯基", "新华社", "１/2"]
    assert first["tags"] == ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O", "B-PER", "B-ORG", "O"]
    assert second["tags"] == ["B-PER", "I-PER", "B-PER", "I-PER", "B-PER", "O", "B-PER"]
    assert counts(folder) == {
        "sentiment.jsonl": {"rows": 4, "labels": {"negative": 1, "positive": 3}, "dropped": {"empty": 1}},
        "sentiment-train.jsonl": {"rows": len(train), "labels": labels(train), "dropped": {}},
        "sentiment-test.jsonl": {"rows": len(test), **({"labels": labels(test)} if test else {}), "dropped": {}},
        "ner.jsonl": {"rows": 2, "dropped": {"empty": 1, "malformed": 1}},
    }


def test_a_tenth_of_the_distinct_reviews_is_apart_in_every_spelling(source, folder):
    texts = [f"Review {number}" for number in range(50)]
    put(source / "sentiment/pos.txt", "\n".join(texts))
    put(source / "sentiment/neg.txt", "\n".join(text.upper().replace(" ", "  ") for text in texts))
    put(source / "tag/199801.txt", "")
    sentiment.chinese(source, folder)
    train, test = (
        {" ".join(row["text"].casefold().split()) for row in rows(folder / f"sentiment-{side}.jsonl")}
        for side in ("train", "test")
    )
    assert (len(train), len(test)) == (45, 5)
    assert not train & test


def test_judged_snippets(source, folder):
    lines = [
        "1\t0.5\tYes &amp; no.",
        "2\t-0.5\tBad.",
        "3\t0.49\tSo so.",
        "4\t-0.1\tHm.",
        "5\t3.2\t ",
        "6\tx\tno number",
    ]
    lines += ["7\t1.5", "8\tnan\tno number either", "", "9\t2\t“Très\u2028bon”"]
    with tarfile.open(source / "a.tar.gz", "w:gz") as tar:
        for name in ("movieReviewSnippets", "amazonReviewSnippets", "tweets", "nytEditorialSnippets"):
            content = ("\r\n".join(lines if name == "tweets" else ["1\t4\tGreat"]) + "\r\n").encode()
            info = tarfile.TarInfo(f"hutto/{name}_GroundTruth.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sentiment.judged(source / "a.tar.gz", folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "counts.json", "movie.jsonl", "product.jsonl", "tweets.jsonl"
    ]  # fmt: skip
    assert rows(folder / "movie.jsonl") == [{"text": "Great", "label": "positive", "score": 4.0}]
    made = [json.loads(line) for line in (folder / "tweets.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert made == [
        {"text": "Yes & no.", "label": "positive", "score": 0.5},
        {"text": "Bad.", "label": "negative", "score": -0.5},
        {"text": "“Très\u2028bon”", "label": "positive", "score": 2.0},
    ]
    assert counts(folder)["tweets.jsonl"]["dropped"] == {"empty": 1, "malformed": 2, "near zero": 3}


def test_news_have_the_headline_beside_the_text(source, folder):
    put(source / "tech/002.txt", "Second\n\nOne.\n\n Two. \n")
    put(source / "tech/001.txt", b"Price\n\nIt costs \xa35.")
    put(source / "sports/001.txt", "Only a headline\n\n")
    put(source / "sports/002.txt", "")
    put(source / "sports/003.txt", "Win\r\n\r\nThey won.\r\n")
    news.topics(source, folder)
    assert rows(folder / "news.jsonl") == [
        {"text": "They won.", "label": "sports", "title": "Win"},
        {"text": "It costs £5.", "label": "tech", "title": "Price"},
        {"text": "One.\nTwo.", "label": "tech", "title": "Second"},
    ]
    assert counts(folder)["news.jsonl"] == {"rows": 3, "labels": {"sports": 1, "tech": 2}, "dropped": {"empty": 2}}


def test_sentences_with_parts_of_speech(source, folder):
    put(source / "cats.txt", "cb01 editorial\nca01 news\n")
    put(source / "ca01", "\n\n\tThe/at 1/2/cd ./.\n\n\n\tBad/\n")
    put(source / "cb01", "\tShe/pps\n")
    put(source / "cz01", "\tNot/* listed/vbn\n")
    tagging.parts_of_speech(source, folder)
    assert rows(folder / "pos.jsonl") == [
        {"words": ["She"], "tags": ["pps"], "genre": "editorial"},
        {"words": ["The", "1/2", "."], "tags": ["at", "cd", "."], "genre": "news"},
    ]
    assert counts(folder)["pos.jsonl"] == {"rows": 2, "dropped": {"malformed": 1}}


def test_poems_in_the_order_of_the_numbers(source, folder):
    def poem(*paragraphs: str) -> dict[str, Any]:
        return {"author": " 李白 ", "title": "静夜思", "paragraphs": paragraphs, "id": "x"}

    put(source / "poet.tang.10000.json", json.dumps([poem("三。")]))
    put(source / "poet.tang.2000.json", json.dumps([poem("一，", "", "二。"), poem()]))
    put(source / "poet.song.0.json", json.dumps([]))
    put(source / "error/poet.tang.0.json", json.dumps([poem("错")]))
    put(source / "authors.song.json", "[]")
    poetry.poems(source, folder)
    texts = [(row["text"], row["title"], row["author"]) for row in rows(folder / "tang.jsonl")]
    assert texts == [("一，\n二。", "静夜思", "李白"), ("三。", "静夜思", "李白")]
    assert counts(folder) == {
        "tang.jsonl": {"rows": 2, "dropped": {"empty": 1}},
        "song.jsonl": {"rows": 0, "dropped": {}},
        "biographies.jsonl": {"rows": 0, "dropped": {}},
        "qa-zh.jsonl": {"rows": 0, "dropped": {"without an answer, beyond a quarter": 0}},
    }


def test_verses_side_by_side(source, folder):
    for file, language in parallel.TRANSLATIONS.items():
        texts = [f"{language} one", "" if language == "sv" else f"{language} two"]
        made = [{"id": i, "text": f"ar {i}", "translation": text} for i, text in enumerate(texts, start=1)]
        put(source / file, json.dumps([{"id": 7, "verses": made}]))
    parallel.verses(source, folder)
    (row,) = rows(folder / "verses.jsonl")
    assert row.keys() == {"chapter", "verse", "ar", *parallel.LANGUAGES}
    assert (row["chapter"], row["verse"], row["ar"], row["zh"]) == (7, 1, "ar 1", "zh one")
    assert counts(folder)["verses.jsonl"]["dropped"] == {"not in every language": 1}


def test_insurance_questions(source, folder):
    def gzipped(name: str, content: dict[str, Any]) -> None:
        put(source / f"{name}.json.gz", gzip.compress(json.dumps(content).encode()))

    ask = {"zh": "什么？", "en": "What  Is\xa0It?", "domain": "life", "negatives": ["1"]}
    gzipped("train", {"0": {**ask, "answers": ["1", "2", "9"]}, "1": {**ask, "zh": "", "answers": ["1"]}})
    gzipped("valid", {"0": {**ask, "answers": ["2"]}})
    gzipped("test", {})
    gzipped("answers", {"1": {"zh": "\xa0一。", "en": " One. "}, "2": {"zh": "二。", "en": "Two."}})
    questions.insurance(source, folder)
    assert rows(folder / "zh.jsonl") == [
        {"prompt": "什么？", "completion": "一。", "domain": "life", "split": "train"},
        {"prompt": "什么？", "completion": "二。", "domain": "life", "split": "train"},
        {"prompt": "什么？", "completion": "二。", "domain": "life", "split": "valid"},
    ]
    english = [(row["prompt"], row["completion"]) for row in rows(folder / "en.jsonl")]
    assert english == [("What Is It?", answer) for answer in ("One.", "Two.", "One.", "Two.")]
    assert counts(folder)["zh.jsonl"]["dropped"] == {"no answer": 1, "no question": 1}
    assert counts(folder)["en.jsonl"]["dropped"] == {"no answer": 1}


def test_fresh_questions(source, folder):
    header = ["id", "split", "question", "false_premise", *(f"answer_{number}" for number in range(10)), "note"]
    table = [["Warning: do not"], [], header]
    table += [["0", "TEST", "Who?\nReally?", "TRUE", "Nobody", "", "No one"], ["1", "DEV", "When?", "FALSE", ""]]
    table += [["2", "DEV", "", "FALSE", "x"], ["3", "DEV", "Where?", "FALSE", " Here "]]
    stream = io.StringIO()
    csv.writer(stream).writerows(table)
    put(source / "a.csv", stream.getvalue())
    questions.fresh(source / "a.csv", folder)
    first, second = rows(folder / "freshqa.jsonl")
    assert first == {
        "prompt": "Who?\nReally?",
        "completion": "Nobody",
        "answers": ["Nobody", "No one"],
        "split": "test",
        "false_premise": True,
    }
    assert (second["completion"], second["split"], second["false_premise"]) == ("Here", "dev", False)
    assert counts(folder)["freshqa.jsonl"] == {"rows": 2, "dropped": {"no answer": 1, "no question": 1}}


TEMPLATES = {
    "expansion_rules": {"the": "(the|my)"},
    "lists": {
        "percent": {"range": {"from": 1, "to": 9, "step": 4}},
        "colour": {"values": [{"in": "(red|blue)", "out": 1}, "green"]},
    },
    "intents": {
        "Many": {"data": [{"sentences": ["set [<the>] {area} to {percent:level}, {percent:more}, {percent:most}"]}]},
        "Lock": {"data": [{"sentences": ["lock {name}"], "requires_context": {"domain": ["lock"]}}]},
        "Lit": {"data": [{"sentences": ["{name} on"], "slots": {"domain": "light"}}, {"sentences": ["{colour}"]}]},
        "Any": {"data": [{"sentences": ["where is {name}"]}]},
    },
}  # fmt: skip


def test_commands_are_drawn_the_same_every_time(source, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(intents, "MOST", 30)
    monkeypatch.setattr(intents, "DRAWS", 600)
    for name in intents.LANGUAGES:
        put(source / name, json.dumps(TEMPLATES))
    intents.commands(source, folder)
    (tmp_path / "again").mkdir()
    intents.commands(source, tmp_path / "again")
    for language in ("en", "zh"):
        made = rows(folder / f"{language}.jsonl")
        assert made == rows(tmp_path / "again" / f"{language}.jsonl")
        texts: dict[str, set[str]] = {}
        for row in made:
            assert row["text"] not in texts.setdefault(row["label"], set())
            texts[row["label"]].add(row["text"])
            assert all(value in row["text"] for value in row["slots"].values())
        things = THINGS[language]
        assert len(texts["Many"]) == 30
        assert texts["Lock"] == {f"lock {name}" for name in things["lock"]}
        assert texts["Lit"] == {"red", "blue", "green", *(f"{name} on" for name in things["light"])}
        assert len(texts["Any"]) == min(30, len({name for names in things.values() for name in names}))
        many = next(row for row in made if row["label"] == "Many")
        assert set(many["slots"]) == {"area", "level", "more", "most"}
        assert many["slots"]["area"] in FILLERS[language]["area"]
        assert {row["slots"]["level"] for row in made if row["label"] == "Many"} == {"1", "5", "9"}
        assert {row["template"] for row in made if row["label"] == "Lit"} == {"{name} on", "{colour}"}


def test_languages_name_the_same_kinds_of_things():
    assert THINGS["en"].keys() == THINGS["zh"].keys()
    assert all(len(set(names)) == len(names) >= 2 for table in THINGS.values() for names in table.values())
