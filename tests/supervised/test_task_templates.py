"""Columns as turns: what a template makes of a row, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import yaml
from supervised_helpers import learned, whole

from gpt_finetune.config import parse
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.columns import fill
from gpt_finetune.supervised.config import ExamplesConfig, ExampleSourceConfig, TurnTemplate
from gpt_finetune.supervised.formats import ExampleReader

ROW = {"text": "a {b} {{c}} 天气", "title": "T", "n": 3, "yes": True, "many": ["x", 2], "none": None, "empty": " "}


def read(template, *rows):
    return list(ExampleReader(template=template)(Record(row, "f.jsonl", f":{i}") for i, row in enumerate(rows, 1)))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Say:\n{text}", "Say:\na {b} {{c}} 天气"),  # braces in data are data
        ("{text:.3}|", "a {|"),
        ("{{{title}}} } {", "{T} } {"),
        ("{n} {yes} {many}", "3 true x, 2"),
        ("{ title }", "T"),
        ("{json:title,n,none,empty}", '{"title": "T", "n": 3, "empty": " "}'),
        ("{json: text , many}", '{"text": "a {b} {{c}} 天气", "many": ["x", 2]}'),
    ],
)
def test_filling(template, said):
    assert fill(template, ROW, "f:1", "user") == said


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", r"f:1 = \[.*no column 'titel', which user names\. Did you mean 'title'"),
        ("{json:title,nn}", r"no column 'nn'"),
        ("{none}", r"f:1: none = None: it is empty"),
        ("{empty}", r"f:1: empty = ' ': it is empty"),
        ("{json:none}", r"all the columns of the answer are empty"),
        ("{thing}", r"f:1: thing = \{'a': 1\}: it holds an object"),
        ("{}", r"user = '\{\}': it is neither"),
        ("{text:800}", r"it is neither"),
        ("{json:}", r"it is neither"),
        ("{json:a:.3}", r"it is neither"),
    ],
)
def test_what_cannot_be_filled(template, message):
    with pytest.raises(InputError, match=message):
        fill(template, {**ROW, "thing": {"a": 1}}, "f:1", "user")


def test_a_row_becomes_turns_whatever_its_columns():
    row = {"text": "long", "title": "short", "messages": "no turns", "tools": "none", "system": "not this"}
    (example,) = read(TurnTemplate("In one line: {text}", "{title}", "Be brief about {title}."), row)
    said = [(turn["role"], turn["content"]) for turn in example.messages]
    assert said == [("system", "Be brief about short."), ("user", "In one line: long"), ("assistant", "short")]
    assert example.learned == (2,)
    assert example.tools is None
    assert example.columns == {"text": "long"}
    assert example.last == ("In one line: long", "short")


def test_structured_answers_can_be_read_back():
    rows = [{"text": "狗：家养的动物", "head": "狗", "relation": "is_a", "tail": None, "years": [1, 2]}]
    (example,) = read(TurnTemplate("{text}", "{json:head,relation,tail,years}"), *rows)
    assert json.loads(example.last[1]) == {"head": "狗", "relation": "is_a", "years": [1, 2]}
    assert "狗" in example.last[1]


def test_rows_are_named_where_they_cannot_be_used():
    with pytest.raises(InputError, match=r"f\.jsonl:2: b = '': it is empty"):
        read(TurnTemplate("{a}", "{b}"), {"a": "x", "b": "y"}, {"a": "x", "b": ""})
    with pytest.raises(InputError, match="no object of columns"):
        read(TurnTemplate("{a}", "{b}"), [1, 2])
    with pytest.raises(InputError, match=r"no column 'a', which template\.user names"):
        read(TurnTemplate("{a}", "{b}"), "plain text")


def test_what_is_learned_and_asked(tmp_path, prepare):
    file = tmp_path / "rows.csv"
    file.write_text("en,fr\nhello you,bonjour toi\nhello all,bonjour tous\n", encoding="utf-8")
    source = ExampleSourceConfig(str(file), template=TurnTemplate("French: {en}", "{fr}"))
    prepared = prepare(source, validation=(), validation_fraction=0.5)
    assert len(prepared.train) == 1
    (prompt,) = prepared.prompts
    assert prompt.shown == f"French: {prompt.columns['en']}"
    assert prompt.reference in ("bonjour toi", "bonjour tous")
    assert "<|im_start|>user\nFrench: hello" in whole(prepared)
    assert learned(prepared)[0].startswith("bonjour")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user": "ask", "assistant": "{a}"}, r"template\.user = 'ask': it names no column"),
        ({"user": "{a}", "assistant": "yes"}, r"template\.assistant"),
        ({"user": "{a}"}, r"template\.assistant = ''"),
        ({"user": "{a:b}", "assistant": "{a}"}, r"template\.user = '\{a:b\}'"),
        ({"user": "{a}", "assistant": "{a}", "system": "{}"}, r"template\.system"),
    ],
)
def test_bad_templates(fields, message):
    with pytest.raises(InputError, match=message):
        ExampleSourceConfig("a.jsonl", template=TurnTemplate(**fields)).validate("data.sources[0]")


def test_template_or_format():
    source = ExampleSourceConfig("a.jsonl", format="text", template=TurnTemplate("{a}", "{b}"))
    with pytest.raises(InputError, match=r"source\.format = 'text': a template says already"):
        source.validate()


def test_a_file_and_a_command_line_can_say_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("sources: [{path: a.jsonl, template: {user: 'x {a}', assistant: '{json:b,c}'}}]\n")
    config = parse(ExamplesConfig, ["--config", str(file)])
    assert config.sources[0].template == TurnTemplate("x {a}", "{json:b,c}")
    assert config.sources[0].template.asks == ["a"]
    assert ExamplesConfig.from_dict(yaml.safe_load(yaml.safe_dump(asdict(config)))) == config
    with pytest.raises(InputError, match="asistant"):
        parse(ExamplesConfig, ["sources=[{path: a.jsonl, template: {user: '{a}', asistant: '{b}'}}]"])


def test_a_limit_takes_so_many_examples_and_counts_the_others(tmp_path, prepare):
    file = tmp_path / "rows.jsonl"
    rows = [{"asked": f"q{i // 2}", "answer": f"a{i}"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = ExampleSourceConfig(str(file), limit=10, template=TurnTemplate("{asked}", "{answer}"))
    first, again = (prepare(source, validation_fraction=0.3, seed=seed) for seed in (0, 0))
    total = first.ledger.total
    assert (total.examples.total, total.examples.limit, total.examples.dropped) == (40, 30, 30)
    assert total.examples.train + total.examples.validation == 10
    assert total.examples.validation in (3, 4)
    assert total.tokens.total == total.tokens.trained + total.tokens.validation + total.tokens.masked
    assert first.fingerprint == again.fingerprint != prepare(source, validation_fraction=0.3, seed=1).fingerprint
    asked = {prompt.shown for prompt in first.prompts}
    assert len(asked) == 2  # of each opening both rows, and both on one side
    assert prepare(replace(source, limit=40)).ledger.total.examples.limit == 0
    with pytest.raises(InputError, match=r"source\.limit = 0"):
        replace(source, limit=0).validate()
