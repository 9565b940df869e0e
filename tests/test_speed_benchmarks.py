"""The benchmarks of generation, adapting and learning from answers: their comparisons, and that they run."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from support import ROOT

TINY = ("--size", "tiny")


@pytest.fixture
def load(monkeypatch):
    """Return a loader of scripts, which find `peers` beside them as when they are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"speed_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def of_generation(speed, tokens):
    return {
        "weights_mb": 1.0,
        "peak_mb": 2.0,
        "1": {"tokens_per_second": speed, "ms_per_step": 1000 / speed, "tokens": [tokens]},
    }


def test_generation_compares_with_the_peer_of_equal_precision_and_with_the_best(load):
    script = load("generation")
    ceilings = {"read_gb_per_second": 8.0, "products_ms_float32_batch_1": 5.0, "peak_mb": 1.0}
    runs = {
        "transformers": [of_generation(speed, [1, 2]) for speed in (9.0, 11.0, 10.0)],
        "ours": [of_generation(20.0, [1, 2])],
        "transformers, bfloat16": [of_generation(5.0, [1, 3])],
        "ours, bfloat16": [of_generation(15.0, [2, 3])],
        script.CEILINGS: [ceilings],
    }
    table = script.summary(runs, [1])["batch_1"]
    assert table["transformers"]["tokens_per_second"] == 10.0
    assert (table["ours"]["times_faster"], table["ours"]["share_in_products"]) == (2.0, 0.1)
    bfloat = table["ours, bfloat16"]
    assert (bfloat["times_faster"], bfloat["times_faster_than_best"], bfloat["same_tokens"]) == (3.0, 1.5, 0.0)
    runs["ours"] = [of_generation(20.0, [1, 3])]
    with pytest.raises(SystemExit, match="other tokens"):
        script.summary(runs, [1])


def test_adapting_refuses_ways_that_do_other_work(load):
    script = load("adaptation")
    ways = {
        "PEFT": {"first_loss": 1.0, "tokens_per_second": 2.0, "peak_mb": 4.0},
        "lora": {"first_loss": 1.00001, "tokens_per_second": 3.0, "peak_mb": 1.0},
    }
    lora = script.compared(ways)["lora"]
    assert (lora["times_faster"], lora["share_of_memory"]) == (1.5, 0.25)
    ways["lora"]["first_loss"] = 1.01
    with pytest.raises(SystemExit, match="lora begins at a loss of"):
        script.compared(ways)


def test_padded_batches_are_the_same_for_all_and_hold_what_is_said(load, make_tokenizer, monkeypatch, tmp_path):
    script = load("supervised_speed")
    rows = [{"prompt": "a b", "completion": "c " * (1 + number)} for number in range(6)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setitem(script.SOURCES, "chat", str(tmp_path / "some.jsonl"))
    monkeypatch.setattr(script, "locate", str)
    monkeypatch.setattr(script, "load_tokenizer", lambda path: make_tokenizer())
    data = script.prepare("chat", 32, packing=False)
    (batch, useful), (again, _) = (next(script.batches(data, 3)) for _ in range(2))
    assert useful == int(batch["attention_mask"].sum()) < batch["input_ids"].numel()
    assert (batch["input_ids"] == again["input_ids"]).all()
    packed, all_of_them = next(script.batches(script.prepare("chat", 512, packing=True), 1))
    assert all_of_them == sum(data.train.lengths) <= packed["input_ids"].numel()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words", "place"),
    [
        ("generation", TINY, ("batch_1", "ours", "times_faster")),
        ("adaptation", (*TINY, "--groups", "gpt2", "--precision", "bfloat16"), ("gpt2", "lora", "times_faster")),
        ("supervised_speed", (*TINY, "--sources", "chat"), ("chat", "padded, transformers", "packed_is_times_faster")),
        ("tasks_speed", (*TINY, "--sources", "product", "--steps", "1"), ("product", "packed", "tokens_per_second")),
        ("dropout", TINY, ("float32, 2 x 16 tokens", "ours", "milliseconds")),
        ("norms", TINY, ("float32, 8 x 16", "ours", "milliseconds")),
        ("perplexity", ("--tokens", "24"), ("bfloat16", "int4", "one_by_one")),
    ],
)
def test_each_runs_to_its_end_at_a_tiny_size(name, words, place, tmp_path):
    import os
    import subprocess

    command = [sys.executable, f"benchmarks/{name}.py", "--rounds", "1", "--results", str(tmp_path)]
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *words], cwd=ROOT, env=around, check=True, capture_output=True)
    report = json.loads((tmp_path / f"{name.replace('_', '-')}.json").read_text())
    group, way, figure = place
    assert report[group][way][figure] > 0
