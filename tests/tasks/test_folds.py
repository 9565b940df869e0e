"""What a cross-validation makes of its folds: which begin, which go on, and what the receipt over them says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gpt_finetune.checkpoints import sign
from gpt_finetune.errors import InputError
from gpt_finetune.metrics.labels import mcnemar_p
from gpt_finetune.tasks import folds, judging
from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig
from gpt_finetune.tasks.fold_tests import compare_pooled, read_by_text, write_by_text


@dataclass
class Config:
    """As much of a recipe's configuration as folds look at."""

    output_dir: str
    resume: bool = False
    overwrite: bool = False
    folds: int | None = 2
    data: ClassifyDataConfig = field(
        default_factory=lambda: ClassifyDataConfig(sources=[RowSourceConfig("rows.jsonl")])
    )


def told(right, labels=("no", "yes"), baselines=("majority",)):
    """Return a fold's receipt; `right` is its confusion matrix."""
    accuracy = float(np.trace(right) / np.sum(right))
    figures = {"accuracy": accuracy, "macro_f1": accuracy, "ece": 0.1, "eval_loss": 0.5, "tokens_per_second": 9.0}
    task = {
        "name": "classification",
        "problem_type": "single_label_classification",
        "labels": list(labels),
        "confusion": right,
    }
    return {
        "status": "finished",
        "duration_s": 1.5,
        "figures": figures,
        "task": task,
        "baselines": {name: {"accuracy": accuracy / 2} for name in baselines},
        "data": {"sources": ["rows.jsonl"], "validation_bytes": 10},
    }


def test_figures_are_means_and_counts_are_sums():
    found = folds.pool([told([[3, 1], [0, 4]]), told([[2, 2], [2, 2]])], ["fold-0", "fold-1"])
    spread = found["task"]["folds"]["figures"]
    assert spread["accuracy"] == {
        "mean": 0.6875,
        "std": pytest.approx(np.std([0.875, 0.5], ddof=1)),
        "values": [0.875, 0.5],
    }
    assert found["figures"] == {"accuracy": 0.6875, "macro_f1": 0.6875, "ece": 0.1, "eval_loss": 0.5}
    assert found["task"]["confusion"] == [[5, 3], [2, 6]]
    no, yes = found["task"]["by_label"]
    assert no == {"label": "no", "precision": 5 / 7, "recall": 5 / 8, "f1": pytest.approx(2 / 3), "support": 8}
    assert yes["support"] == 8
    assert found["baselines"] == {"majority": {"accuracy": 0.34375}}
    assert found["data"]["validation_bytes"] == 20


def test_what_folds_do_not_share_is_not_pooled():
    other = told([[2, 2], [2, 2]], labels=("no", "maybe"), baselines=())
    found = folds.pool([told([[3, 1], [0, 4]]), other], ["fold-0", "fold-1"])
    assert "confusion" not in found["task"]
    assert found["baselines"] == {}


def kept(ours, theirs, **more):
    """Return a fold's section of the task, as a run keeps it; each text's part and whole."""
    return {"by_text": write_by_text({"ours": np.array(ours), "majority": np.array(theirs)}), "resamples": 200, **more}


def test_a_test_counts_the_texts_of_all_folds():
    right = [[1, 1]] * 4
    folds_ = [kept([*right, [0, 1]], [[0, 1]] * 4 + [[1, 1]]) for _ in range(3)]
    found = compare_pooled(folds_, "single_label_classification", "macro_f1")["majority"]
    one = np.array([True] * 4 + [False])
    assert found["p"] == mcnemar_p(np.tile(one, 3), ~np.tile(one, 3)) < 0.05 < mcnemar_p(one, ~one)
    assert found["pooled_n"] == 15
    assert found["test"] == "McNemar's exact test over the texts of all folds"


def test_other_figures_are_bootstrapped_pair_by_pair():
    generator = np.random.default_rng(0)
    whole = generator.integers(2, 9, size=(3, 40))
    sides = [[np.stack((generator.binomial(size, share), size), -1) for size in whole] for share in (0.7, 0.5)]
    found = compare_pooled([kept(*pair) for pair in zip(*sides, strict=True)], "entity_tagging", "entity_f1")
    assert found["majority"]["p"] < 0.02
    assert found["majority"]["test"] == "paired bootstrap of entity_f1 over the texts of all folds"
    same = compare_pooled([kept(pair, pair) for pair in sides[0]], "entity_tagging", "entity_f1")
    assert same["majority"]["p"] == 1.0


def test_intervals_are_of_the_texts_of_all_folds():
    """Ninety of a hundred texts right, half of them of a label: a share's own error is sqrt(0.9 * 0.1 / 100)."""
    right = [told([[45, 5], [5, 45]]) for _ in range(4)]
    for each in right:
        each["task"] |= kept([[1, 1]] * 90 + [[0, 1]] * 10, [[0, 1]] * 100, resamples=2000)
    for count in (1, 4):
        found = folds.pool(right[:count] * 2, ["fold"] * 2 * count)["task"]["intervals"]
        half = 1.96 * (0.9 * 0.1 / (200 * count)) ** 0.5
        for name in ("accuracy", "macro_f1"):
            assert found[name] == pytest.approx((0.9 - half, 0.9 + half), abs=0.15 * half)
    plain = folds.pool([told([[3, 1], [0, 4]])] * 2, ["fold-0", "fold-1"])["task"]["intervals"]
    assert plain.keys() == {"macro_f1"}  # nothing is kept by text


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_parts_and_wholes_make_up_the_figure(problem):
    generator = np.random.default_rng(0)
    logits, shape = generator.normal(size=(30, 3)), (30, 3)
    right = generator.integers(2, size=shape).astype(np.float32)
    if problem.startswith("single"):
        right = generator.integers(3, size=30)
    name = {"single_label_classification": "accuracy", "multi_label_classification": "micro_f1"}.get(problem, "mse")
    part, whole = judging._by_text(problem, judging.decide(problem, logits), right).sum(0)
    assert part / whole == pytest.approx(judging.measure(problem, logits, right)[name])


def test_what_was_kept_comes_back_and_old_folds_have_none():
    counts = np.array([[2, 3], [0, 0], [0.123456789, 1], [1e-9, 2]])
    assert read_by_text(write_by_text({"x": counts})["x"]) == pytest.approx(counts, rel=1e-8)
    assert compare_pooled([kept([[1, 1]], [[1, 1]]), {}], "single_label_classification", "macro_f1") == {}


def test_the_receipt_over_the_folds_bears_the_tests():
    receipts = [told([[4, 0], [1, 0]]), told([[3, 1], [1, 0]])]
    for each in receipts:
        each["task"] |= kept([[1, 1]] * 5, [[0, 1]] * 5)
    found = folds.pool(receipts, ["fold-0", "fold-1"])
    assert found["task"]["baselines"]["majority"]["p"] == pytest.approx(2 / 2**10)
    assert found["baselines"]["majority"].keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("nothing", (False, False)),
        ("no receipt", (False, False)),
        ("no checkpoint", (False, True)),
        ("a broken checkpoint", (False, True)),
        ("a whole checkpoint", (True, False)),
    ],
)
def test_a_fold_goes_on_from_a_whole_checkpoint_only(state, expected, tmp_path):
    folder = tmp_path / "fold-0"
    if state != "nothing":
        folder.mkdir()
        (folder / "config.yaml").touch()
    if state not in ("nothing", "no receipt"):
        (folder / "run.json").write_text(json.dumps({"status": "running"}), encoding="utf-8")
    if "a " in state:
        checkpoint = folder / "checkpoint-3"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text("1234")
        sign(checkpoint, 3)
        if "broken" in state:
            (checkpoint / "weights").write_text("123")
    found = folds._prepared(Config(str(folder)), folder)
    assert (found.resume, found.overwrite) == expected
    assert folder.exists() == (state not in ("nothing", "no receipt"))


def test_each_text_is_held_out_by_one_fold_and_processes_do_not_share_a_command(tmp_path, monkeypatch):
    parts = folds.split(Config(str(tmp_path), folds=3))
    assert [(part.data.folds, part.data.fold) for part in parts] == [(3, 0), (3, 1), (3, 2)]
    assert [Path(part.output_dir).name for part in parts] == ["fold-0", "fold-1", "fold-2"]
    assert all(part.folds is None for part in parts)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"folds = 3: the folds of one command are trained in one process"):
        folds.split(Config(str(tmp_path), folds=3))
