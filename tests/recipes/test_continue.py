"""Continued pretraining: what the model knew before is watched, forgotten, and kept by mixing it in."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from support import load_recipe

from gpt_finetune.config import parse, to_yaml
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CHARACTERS = "春眠不觉晓处闻啼鸟夜来风雨声花落知多少白日依山尽黄河入海流"


def poem(seed: int) -> str:
    return "".join(random.Random(seed).choices(CHARACTERS, k=200))


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domains")
    for i in range(40):
        for name, text in (
            ("old", "\n".join(f"def f{i}_{j}(x):\n    return x + {j}\n" for j in range(20))),
            ("new", poem(i)),
        ):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def start(domains: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a starter of tiny runs; it returns their folder."""
    recipe, runs = load_recipe("pretrain"), tmp_path_factory.mktemp("runs")

    def run(name: str, *more: str) -> Path:
        words = [
            f"output_dir={runs / name}",
            "data.validation_fraction=0.2",
            "data.block_size=32",
            f"data.cache_dir={runs / 'cache'}",
            "train.max_steps=30",
            "train.batch_size=8",
            "train.eval_batch_size=32",
            "train.log_steps=10",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            *more,
        ]
        recipe.main(parse(recipe.PretrainConfig, words))
        return runs / name

    return run


@pytest.fixture(scope="module")
def base(start, domains: Path) -> Path:
    tiny = ["model.preset=tiny", "model.overrides={num_hidden_layers: 1}", "tokenizer.vocab_size=300"]
    return start("base", *tiny, f"data.sources=[{{path: {domains / 'old'}}}]")


@pytest.fixture(scope="module")
def watch(domains: Path) -> str:
    return f"data.watch={{old: [{{path: {domains / 'old'}}}]}}"


@pytest.fixture(scope="module")
def forgetful(start, base: Path, domains: Path, watch: str) -> Path:
    more = ["data.watch_fraction=0.2", "train.eval_steps=10", "train.save_steps=10"]
    return start("on", f"model.from_pretrained={base}", f"data.sources=[{{path: {domains / 'new'}}}]", watch, *more)


def receipt(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_the_old_domain_is_forgotten_and_the_run_says_so(base, forgetful):
    told = receipt(forgetful)
    before, after = (told["forgetting"]["old"][when] for when in ("before", "after"))
    # the watched documents are those that the base's own run held out: the same figure, to the last digits
    assert before["eval_loss"] == pytest.approx(receipt(base)["figures"]["eval_loss"], rel=1e-6)
    assert before["bits_per_byte"] == pytest.approx(receipt(base)["figures"]["bits_per_byte"], rel=1e-6)
    assert after["eval_loss"] > before["eval_loss"] + 0.5
    assert after["perplexity"] == pytest.approx(math.exp(after["eval_loss"]))
    new = told["baselines"]["before training"], told["figures"]
    assert new[1]["eval_loss"] < new[0]["eval_loss"] - 1
    assert new[0]["bits_per_byte"] / new[0]["eval_loss"] != pytest.approx(before["bits_per_byte"] / before["eval_loss"])

    rows = [row for row in read_json_lines(forgetful / "metrics.jsonl") if row["split"] == "eval"]
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
    assert [row["old_loss"] for row in (rows[0], rows[-1])] == [before["eval_loss"], after["eval_loss"]]
    page = (forgetful / "report.html").read_text(encoding="utf-8")
    assert "Forgetting" in page
    assert f"{after['bits_per_byte']:.3f}" in page
    assert "| old | Bits per byte |" in (forgetful / "README.md").read_text(encoding="utf-8")


def test_mixing_old_data_in_lessens_it(start, base, forgetful, domains, watch):
    sources = f"data.sources=[{{path: {domains / 'new'}}}, {{path: {domains / 'old'}, weight: 0.5}}]"
    mixed = start("mixed", f"model.from_pretrained={base}", sources, watch, "data.watch_fraction=0.2")
    pure, kept = (receipt(folder)["forgetting"]["old"] for folder in (forgetful, mixed))
    assert kept["before"] == pytest.approx(pure["before"], rel=1e-6)  # the same documents
    assert kept["after"]["eval_loss"] < pure["after"]["eval_loss"] - 0.3
    # and none of them was trained on, or held out a second time: they count as duplicates
    book = receipt(mixed)["data"]["ledger"]["sources"][1]["documents"]
    assert book["duplicate"] == pytest.approx(0.2 * 40, abs=1)
    assert receipt(forgetful)["data"]["ledger"]["total"]["documents"]["duplicate"] == 0


def test_forgetting_outlives_a_resume(forgetful, start, base, domains, watch):
    told = receipt(forgetful)["forgetting"]
    shutil.copytree(forgetful, forgetful.with_name("stopped"))
    shutil.rmtree(forgetful.with_name("stopped") / "checkpoint-30")
    more = ["data.watch_fraction=0.2", "train.eval_steps=10", "train.save_steps=10", "--resume"]
    again = start(
        "stopped", f"model.from_pretrained={base}", f"data.sources=[{{path: {domains / 'new'}}}]", watch, *more
    )
    assert receipt(again)["forgetting"] == told
    rows = [row["step"] for row in read_json_lines(again / "metrics.jsonl") if row["split"] == "eval"]
    assert rows == [0, 10, 20, 30]


def test_a_stream_is_watched_too(start, base, domains, watch):
    sources = f"data.sources=[{{path: {domains / 'new'}}}, {{path: {domains / 'old'}}}]"
    stream = ["data.streaming=true", "data.validation_documents=5", "train.max_steps=2"]
    told = receipt(start("stream", f"model.from_pretrained={base}", sources, watch, *stream))
    assert told["forgetting"]["old"]["before"]["bits_per_byte"] > 0


@pytest.mark.long
def test_on_the_text_of_a_package(start, base, tmp_path, monkeypatch):
    from gpt_finetune.supervised import sources

    rows = "".join(json.dumps({"label": "poem", "poem": poem(i)}, ensure_ascii=False) + "\n" for i in range(20))
    (tmp_path / "poems.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(sources.packaged, "fetch", {"tang": tmp_path}.__getitem__)
    source = "data.sources=[{path: package:tang/poems.jsonl, text_column: poem}]"
    folder = start("packaged", f"model.from_pretrained={base}", source, "train.max_steps=4")
    told = receipt(folder)
    assert told["data"]["ledger"]["sources"][0]["source"] == "package:tang/poems.jsonl"
    assert told["figures"]["eval_loss"] < read_json_lines(folder / "metrics.jsonl")[0]["loss"] - 1


def test_a_watched_configuration_is_read_back(watch, tmp_path):
    recipe, path = load_recipe("pretrain"), tmp_path / "config.yaml"
    config = parse(recipe.PretrainConfig, [watch, "data.watch_fraction=0.5"])
    assert config.data.watch["old"][0].weight == 1.0
    path.write_text(to_yaml(config), encoding="utf-8")
    assert parse(recipe.PretrainConfig, ["--config", str(path)]) == config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.watch={old text: [{path: x}]}"], "a watched domain has a name of letters"),
        (["data.watch={old: []}"], "at least one source"),
        (["data.watch={old: [{path: /nowhere}]}"], "data.watch.old.*/nowhere"),
        (["data.watch={old: [{path: x, weigth: 2}]}"], "weigth"),
        (["data.watch={old: [{path: embedded:python}]}", "data.watch_fraction=0"], "data.watch_fraction = 0"),
        (["data.watch={old: [{path: x}]}", "data.validation_fraction=0"], "there are none"),
    ],
)
def test_bad_input(start, domains, more, message):
    with pytest.raises(InputError, match=message):
        start("bad", "overwrite=true", f"data.sources=[{{path: {domains / 'new'}}}]", *more)


def test_one_document_cannot_be_shared(start, domains):
    watch = f"data.watch={{old: [{{path: {domains / 'old' / '1.txt'}}}]}}"
    with pytest.raises(InputError, match=r"data.watch_fraction = .*one document only"):
        start("one", f"data.sources=[{{path: {domains / 'new'}}}]", watch, "data.watch_fraction=0.5")
