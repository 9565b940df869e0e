"""One seed, one machine: two runs are one, to the last bit of the weights and of every figure but the clock's."""

from __future__ import annotations

import hashlib
import json

import pytest
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.training.callbacks import read_json_lines
from gpt_finetune.training.replay import read_past, replay

CLOCK = {"elapsed_s", "runtime", "mfu", "peak_memory_mb"}
KIND, UNKIND, OTHERS = ["good", "fine", "很好"], ["bad", "dull", "很差"], ["plot", "scene", "actor", "故事"]


@pytest.fixture(scope="session")
def settings(words, finished, tmp_path_factory):
    """Return by name: a recipe, its configuration's class, and the words of a small run with dropout where it can."""
    folder = tmp_path_factory.mktemp("data")
    talks, texts = folder / "talks.jsonl", folder / "texts.jsonl"
    sums = [(f"{a}+{b}?", f"{a + b}.") for a in range(6) for b in range(6)]
    talks.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]})
            for a, b in sums
        ),
        encoding="utf-8",
    )
    rows = [
        {"text": f"{OTHERS[i % 4]} {(KIND, UNKIND)[i % 2][i % 3]} {OTHERS[i // 4 % 4]} {i}", "label": "ab"[i % 2]}
        for i in range(60)
    ]
    texts.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    shared = ["train.max_steps=4", "train.batch_size=4", "train.log_steps=1", "train.precision=float32"]
    shared += ["train.save_steps=2", "data.validation_fraction=0.2", "data.max_length=48", f"model={finished}"]
    return {
        "pretrain": [
            *(word for word in words("_") if not word.startswith(("output_dir", "model.overrides"))),
            "model.overrides={num_hidden_layers: 1, residual_dropout: 0.1}",
            "sample.prompts=[]",
        ],
        "finetune": [
            *shared,
            f"data.sources=[{{path: {talks}}}]",
            "adapt.dropout=0.1",
            "answer.max_prompts=2",
            "answer.max_new_tokens=4",
        ],
        "classify": [*shared, f"data.sources=[{{path: {texts}}}]", "adapt.method=full", "judge.baselines=false"],
    }


def start(name, folder, words):
    recipe = load_recipe(name)
    config_class = getattr(recipe, f"{name.capitalize()}Config")
    recipe.main(parse(config_class, [*words, f"output_dir={folder}"]))


def figures(folder):
    rows = read_json_lines(folder / "metrics.jsonl")
    assert len(rows) >= 4
    return [
        {name: value for name, value in row.items() if name not in CLOCK and "per_second" not in name} for row in rows
    ]


def weights(folder):
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) >= 2
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def once(settings, tmp_path_factory):
    """Return a maker of one run of a recipe, for all tests."""
    made = {}

    def once(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("once") / name
            start(name, made[name], settings[name])
        return made[name]

    return once


MORE = [pytest.param(name, marks=pytest.mark.long) for name in ("finetune", "classify")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", *MORE])
def test_two_runs_of_one_seed_are_one(name, once, settings, tmp_path):
    start(name, tmp_path / "again", settings[name])
    assert figures(tmp_path / "again") == figures(once(name))
    assert weights(tmp_path / "again") == weights(once(name))


@pytest.mark.long
@pytest.mark.parametrize("name", ["pretrain", "finetune", "classify"])
def test_another_seed_is_another_run(name, once, settings, tmp_path):
    start(name, tmp_path / "other", [*settings[name], "train.seed=1"])
    assert weights(tmp_path / "other") != weights(once(name))


@pytest.mark.long
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("name", ["pretrain", "finetune", "classify"])
def test_a_run_replays(name, first, once, tmp_path):
    past = read_past(once(name))
    outcome = replay(past, ROOT / "recipes", tmp_path / "again", first)
    differing = set(outcome.differing) - {"environment.commit", "environment.code"}  # somebody may be at work on them
    assert (outcome.same, differing, outcome.weights) == (True, set(), True)
    assert outcome.begun_from == {1: 0, 4: 3 if name == "pretrain" else 2}[first]
