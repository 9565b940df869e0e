"""Documents of a packaged data set: any column of its rows, found by whoever knows packages."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from data_helpers import documents, make_texts

from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig
from gpt_finetune.data.prepare import prepare
from gpt_finetune.data.sources import open_source
from gpt_finetune.errors import InputError
from gpt_finetune.supervised import sources
from gpt_finetune.supervised.config import PACKAGE

FINDERS = {PACKAGE: sources.in_package}
TEXTS = make_texts(30)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `tiny` with rows that have their text in the column `body`."""
    folder = tmp_path / "built"
    folder.mkdir()
    rows = "".join(json.dumps({"label": i, "body": text}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "meta.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(sources.packaged, "fetch", {"tiny": folder}.__getitem__)
    return folder


def test_a_column_of_a_package_is_text_to_train_on(package, tmp_path, tokenizer_folder):
    source = SourceConfig("package:tiny/rows.jsonl", text_column="body")
    data = DataConfig([source], block_size=16, cache_dir=str(tmp_path / "cache"))
    prepared = prepare(data, TokenizerConfig(path=tokenizer_folder), finders=FINDERS)
    sides = [documents(side, prepared.tokenizer) for side in (prepared.train, prepared.validation)]
    assert sorted(sides[0] + sides[1]) == sorted(TEXTS)
    assert prepared.ledger.to_dict()["sources"][0]["source"] == source.path
    assert asdict(source)["path"] == "package:tiny/rows.jsonl"  # what the configuration and the cache's key say
    again = prepare(data, TokenizerConfig(path=tokenizer_folder), finders=FINDERS)
    assert again.cache_hit


def test_it_can_be_watched_and_streamed(package, tmp_path, tokenizer_folder):
    (tmp_path / "new.txt").write_text("\n".join(make_texts(30, seed=5)), encoding="utf-8")
    sources_ = [SourceConfig(str(tmp_path / "new.txt"), separator="\n")]
    old = SourceConfig("package:tiny/rows.jsonl", text_column="body")
    cached = {"block_size": 16, "cache_dir": str(tmp_path / "cache")}
    data = DataConfig(sources_, watch={"old": [old]}, **cached)
    prepared = prepare(data, TokenizerConfig(path=tokenizer_folder), finders=FINDERS)
    assert sorted(documents(prepared.watched["old"].rows, prepared.tokenizer)) == sorted(TEXTS)
    data = DataConfig([old], streaming=True, validation_documents=3, **cached)
    prepared = prepare(data, TokenizerConfig(path=tokenizer_folder), finders=FINDERS)
    assert documents(prepared.validation, prepared.tokenizer) == TEXTS[:3]


def test_pretraining_reads_them(package, tmp_path, monkeypatch):
    from support import load_recipe

    from gpt_finetune.config import parse
    from gpt_finetune.data import prepare as preparation

    def look(data, tokenizer, **more):
        raise LookupError(open_source(data.sources[0], "s", **more).config.path)

    monkeypatch.setattr(preparation, "prepare", look)
    recipe = load_recipe("pretrain")
    words = [f"output_dir={tmp_path / 'run'}", "data.sources=[{path: package:tiny/rows.jsonl, text_column: body}]"]
    with pytest.raises(LookupError, match=r"package:tiny/rows\.jsonl"):
        recipe.main(parse(recipe.PretrainConfig, [*words, "model.preset=tiny", "data.block_size=16"]))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:tiny/row.jsonl", r"s\.path = 'package:tiny/row\.jsonl': the package has no such file.*rows\.jsonl"),
        ("package:tiny", r"s\.path = 'package:tiny': the package has no such file"),
    ],
)
def test_what_is_not_in_the_package_is_said(package, path, message):
    with pytest.raises(InputError, match=message):
        open_source(SourceConfig(path), "s", finders=FINDERS)


def test_a_column_that_the_rows_lack_is_said(package):
    source = open_source(SourceConfig("package:tiny/rows.jsonl"), "s", finders=FINDERS)
    with pytest.raises(InputError, match=r"rows\.jsonl.*'text'"):
        list(source.documents())


def test_no_package_of_that_name_is_said_with_what_is_near():
    with pytest.raises(InputError, match=r"s\.path = 'package:bbc-newss/x\.jsonl': no package brings it"):
        open_source(SourceConfig("package:bbc-newss/x.jsonl"), "s", finders=FINDERS)
