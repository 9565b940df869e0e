"""What a cross-validation makes of its folds: which begin, which go on, and what the receipt over them says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gpt_finetune.checkpoints import sign
from gpt_finetune.errors import InputError
from gpt_finetune.tasks import folds
from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig


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
