"""Two real processes under `accelerate launch`, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest
from support import ROOT

from gpt_finetune.training.callbacks import read_json_lines


def launch(config: str, *words: str, recipe: str = "pretrain") -> subprocess.CompletedProcess[str]:
    """Run a recipe as the documentation says, and return what it printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--config_file", str(ROOT / "configs" / "accelerate" / config), str(ROOT / "recipes" / f"{recipe}.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)  # as a user's shell is
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=280)


@pytest.mark.slow
def test_two_processes_share_the_trajectory_of_one(words, tmp_path):
    cores = min(psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)))
    found = {}
    for processes, config, batch_size in ((1, "single.yaml", 4), (2, "cpu-2.yaml", 2)):
        folder = tmp_path / f"{processes}"
        # 5 rows a batch of evaluation do not divide evenly between two processes: repeats must not count
        done = launch(config, *words(folder, f"train.batch_size={batch_size}", "train.eval_batch_size=5"))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("dropped") == 1  # the ledger is said, and once
        receipt = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert receipt["environment"]["processes"] == processes
        # Accelerate would have left each process one thread, whatever the machine has
        assert receipt["environment"]["threads"] == max(1, cores // processes)
        rows = read_json_lines(folder / "metrics.jsonl")
        found[processes] = rows, receipt["figures"]
    (one, figures_one), (two, figures_two) = found[1], found[2]
    assert [(row["step"], row["split"]) for row in two] == [(row["step"], row["split"]) for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert [row.get("tokens") for row in two] == [row.get("tokens") for row in one]
    assert figures_two["eval_tokens"] == figures_one["eval_tokens"]


@pytest.mark.slow
def test_bad_input_is_said_once_by_two_processes(words, tmp_path):
    done = launch("cpu-2.yaml", *words(tmp_path / "bad", "model.preset=gpt9"))
    assert done.returncode != 0
    assert done.stderr.count("error: model.preset = 'gpt9'") == 1


@pytest.mark.slow
def test_two_processes_tune_an_adapter_as_one_does(finished, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{i}加1？"}, {"role": "assistant", "content": f"得{i + 1}。"}]}
        for i in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    found = {}
    for config, batch_size in (("single.yaml", 4), ("cpu-2.yaml", 2)):
        folder = tmp_path / config
        words = [
            f"output_dir={folder}",
            f"model={finished}",
            f"data.sources=[{{path: {file}}}]",
            "data.validation_fraction=0.2",
            "data.max_length=64",
            "data.packing=false",
            "train.max_steps=4",
            f"train.batch_size={batch_size}",
            "train.log_steps=1",
            "train.learning_rate=1e-2",
            "answer.max_prompts=5",  # not even between two processes
            "answer.max_new_tokens=6",
            "train.trainer.train_sampling_strategy=random",
        ]
        done = launch(config, *words, recipe="finetune")
        assert done.returncode == 0, done.stderr[-3000:]
        receipt = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        losses = [row["loss"] for row in read_json_lines(folder / "metrics.jsonl") if row["split"] == "train"]
        found[config] = losses, receipt["figures"], receipt["baselines"]
    (losses, figures, before), (losses_two, figures_two, before_two) = found.values()
    assert losses_two == pytest.approx(losses, rel=1e-5)
    for name in ("eval_loss", "eval_tokens", "chrf", "stop_rate", "answer_tokens"):
        assert figures_two[name] == pytest.approx(figures[name], rel=1e-5)
        assert before_two["before training"][name] == pytest.approx(before["before training"][name], rel=1e-5)
