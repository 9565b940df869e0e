"""Questions with spans for answers, built from definitions and lives of a tiny source of the same layout."""

from __future__ import annotations

import json

import pytest

from gpt_finetune.packaged import biographies, wordnet


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


NOUNS = """  1 the licence
00000001 03 n 01 Michigan 0 000 | a state; "Michigan has lakes"
00000002 03 n 02 town 0 small_town 0 000 | an urban area
00000003 03 n 01 Saginaw 0 003 @i 00000002 n 0 #p 00000001 n 0 #p 00000002 n 0 | a small town of michigan; a Town
00000004 03 n 01 lodge 0 001 @ 00000001 n 0000 | a townhouse
"""


def test_definitions_name_what_pointers_lead_to(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS, encoding="utf-8")
    wordnet.relations(tmp_path, tmp_path)
    text = "Saginaw: a small town of michigan; a Town"
    assert rows(tmp_path / "relations.jsonl") == [
        {"text": text, "head": "Saginaw", "relation": "instance_of", "tail": "small town"},  # the longest word first
        {"text": text, "head": "Saginaw", "relation": "part_of", "tail": "small town"},
        {"text": text, "head": "Saginaw", "relation": "part_of", "tail": "michigan"},  # as the text has it
    ]
    first, second = rows(tmp_path / "qa.jsonl")
    question = "What kind of thing is Saginaw?"
    assert first == {"question": question, "context": text, "answers": ["small town"], "start": [11]}
    assert second["answers"] == ["small town", "michigan"]
    assert second["start"] == [text.index("small"), text.index("michigan")]
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["relations.jsonl"] == {
        "rows": 3,
        "dropped": {"instance_of, not named": 0, "is_a, not named": 1, "part_of, not named": 0},
    }


LIFE = "曾致堯（九四七～一○一二），字正臣，撫州南豐（今屬江西）人。太宗太平興國八年（九八三）進士。"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (LIFE, ["正臣", "撫州南豐", "太宗太平興國八年"]),
        ("姚鍄，居四川，太宗時人。", [None, None, None]),
        ("任逢，度宗咸淳時崇安（今福建崇安）人。孝宗淳熙間進士。", [None, None, None]),
        ("曹衍，衡陽（今屬湖南）人。", [None, "衡陽", None]),
    ],
)
def test_lives_say_where_a_poet_is_from_and_when_examined(tmp_path, text, facts):
    (tmp_path / biographies.FILE).write_text(json.dumps([{"name": " 甲 ", "desc": f" {text}\n"}]), encoding="utf-8")
    found = biographies.lives(tmp_path)
    told = dict(zip(biographies.FACTS, facts, strict=True))
    slots = {name: value for name, value in told.items() if value}
    assert found["biographies.jsonl"].kept == [{"text": text, "name": "甲", **told, "slots": slots}]
    asked = found["qa-zh.jsonl"].kept
    assert [row["answers"] for row in asked] == [[fact] for fact in facts if fact]
    assert all(text[row["start"][0] :].startswith(row["answers"][0]) for row in asked)


def test_a_quarter_of_the_questions_has_no_answer_where_the_text_is_silent(tmp_path):
    silent = "張弘道，宋遺民。"
    poets = [{"name": "曾致堯", "desc": LIFE}, {"name": "張弘道", "desc": silent}, {"name": "乙", "desc": LIFE}]
    (tmp_path / biographies.FILE).write_text(json.dumps([*poets, {"name": "丙", "desc": ""}]), encoding="utf-8")
    found = biographies.lives(tmp_path)
    assert found["biographies.jsonl"].counts() == {"rows": 2, "dropped": {"duplicate": 1, "empty": 1}}
    without = [row for row in found["qa-zh.jsonl"].kept if not row["answers"]]
    assert [row["context"] for row in without] == [silent]
    assert len(found["qa-zh.jsonl"].kept) == 4
    assert found["qa-zh.jsonl"].dropped == {"without an answer, beyond a quarter": 2}
