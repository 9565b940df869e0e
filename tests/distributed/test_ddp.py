"""Two real processes under `accelerate launch`, on the CPU, train as one does: a trajectory, and the same figures."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import launch
from support import load_recipe
from trajectories import ROWS, STEPS, trajectories

from gpt_finetune.config import parse
from gpt_finetune.training.callbacks import read_json_lines

BATCH = {1: 4, 2: 2}  # rows a process, by how many processes there are


def finetune_words(folder: Path, base: Path) -> list[str]:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}加1？"}, {"role": "assistant", "content": f"得{i + 1}。"}]}
        for i in range(40)
    ]
    file = folder / "chats.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return [
        f"model={base}",
        f"data.sources=[{{path: {file}}}]",
        "data.validation_fraction=0.2",
        "data.max_length=64",
        "data.packing=false",
        "train.max_steps=4",
        "train.log_steps=1",
        "train.precision=float32",
        "train.learning_rate=1e-2",
        "answer.max_prompts=5",  # not even between two processes
        "answer.max_new_tokens=6",
        "train.trainer.train_sampling_strategy=random",
    ]


def classify_words(folder: Path, base: Path) -> list[str]:
    chance = random.Random(0)
    file = folder / "reviews.jsonl"
    said = [(" ".join(chance.choices(["def", "add", "月", "光"], k=chance.randint(2, 9))), i) for i in range(43)]
    rows = [{"text": f"{text} {('good', 'bad')[i % 2]} {i}", "label": ("kind", "unkind")[i % 2]} for text, i in said]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return [
        f"model={base}",
        f"data.sources=[{{path: {file}}}]",
        "data.validation_fraction=0.25",
        "data.max_length=64",
        "train.max_steps=4",
        "train.log_steps=1",
        "train.precision=float32",
        "train.learning_rate=1e-2",
        "train.eval_batch_size=3",  # nor these
        "judge.baselines=false",
    ]


@pytest.fixture(scope="module")
def runs(words: Any, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Any]]:
    """Run each recipe here, and all in one launch of two processes: (rows of metrics, receipt) by recipe and number."""
    folder = tmp_path_factory.mktemp("ddp")
    jobs = {
        # 5 rows a batch of evaluation do not divide evenly between two processes: repeats must not count
        "pretrain": words(folder / "unused", "train.eval_batch_size=5")[1:],
        "finetune": finetune_words(folder, finished),
        "classify": classify_words(folder, finished),
    }
    given = {
        processes: {
            name: [*job, f"output_dir={folder / name}-{processes}", f"train.batch_size={batch_size}"]
            for name, job in jobs.items()
        }
        for processes, batch_size in BATCH.items()
    }
    for name, job in given[1].items():
        recipe = load_recipe(name)
        recipe.main(parse(getattr(recipe, f"{name.title()}Config"), job))
    several = [("trajectories", [str(folder)]), *given[2].items()]
    done = launch("cpu-2.yaml", "tests/distributed/ranks.py", json.dumps(several))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in jobs:  # what the first process says, the second does not repeat
        assert done.stderr.count(f"everything goes to {folder / name}-2") == 1
    found: dict[str, dict[int, Any]] = {name: {} for name in jobs}
    for name, by_number in found.items():
        for processes in BATCH:
            made = folder / f"{name}-{processes}"
            receipt = json.loads((made / "run.json").read_text(encoding="utf-8"))
            by_number[processes] = read_json_lines(made / "metrics.jsonl"), receipt
    found["trajectories"] = {rank: json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)}
    return found


@pytest.mark.slow
def test_batch_processes_and_accumulation_share_one_trajectory(runs, tmp_path):
    """One process x 8 rows, two x 4, and one x 2 x accumulation 4 are one training: every head, and LoRA."""
    one = trajectories(tmp_path / "one", ROWS)
    heads = {"causal", "masked", "sequence", "tokens", "answers", "choices", "pair"}
    assert set(one) == heads | {"causal with LoRA"}
    accumulated = trajectories(tmp_path / "accumulated", 2, 4)
    for name, losses in one.items():
        assert len(losses) == STEPS
        assert losses[-1] < losses[0]
        for others in (accumulated, *runs["trajectories"].values()):
            assert others[name] == pytest.approx(losses, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pretrain", "finetune", "classify"])
def test_two_processes_share_the_trajectory_of_one(runs, recipe):
    (one, _), (two, receipt) = runs[recipe][1], runs[recipe][2]
    assert receipt["environment"]["processes"] == 2
    # Accelerate would have left each process one thread, whatever the machine has
    cores = min(psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)))
    assert receipt["environment"]["threads"] == max(1, cores // 2)
    assert [(row["step"], row["split"]) for row in two] == [(row["step"], row["split"]) for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert [row.get("tokens") for row in two] == [row.get("tokens") for row in one]


FIGURES = {
    "pretrain": ["eval_loss", "eval_tokens", "perplexity", "bits_per_byte"],
    "finetune": ["eval_loss", "eval_tokens", "chrf", "stop_rate", "answer_tokens"],
    "classify": ["eval_loss", "accuracy", "macro_f1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FIGURES)
def test_two_processes_have_the_figures_of_one(runs, recipe):
    one, two = (runs[recipe][processes][1] for processes in BATCH)
    for name in FIGURES[recipe]:
        assert two["figures"][name] == pytest.approx(one["figures"][name], rel=1e-5), name
    if recipe == "finetune":
        before, before_two = (receipt["baselines"]["before training"] for receipt in (one, two))
        assert before_two == pytest.approx(before, rel=1e-5)
    if recipe == "classify":
        tables = [
            {**receipt["task"], "calibration": [row["count"] for row in receipt["task"]["calibration"]]}
            for receipt in (one, two)
        ]
        assert tables[1] == tables[0]
