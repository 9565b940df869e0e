"""A recipe that a signal stops, as its user sees it: exit code, receipt, and the way to go on."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest
from support import load_recipe

from gpt_finetune.checkpoints import find_whole
from gpt_finetune.config import run
from gpt_finetune.training.callbacks import MetricsWriter, read_json_lines
from gpt_finetune.training.stopping import Interrupted


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


@pytest.fixture
def start(words):
    recipe = load_recipe("pretrain")

    def start(folder, *more):
        # no checkpoints of its own, and dropout: what goes on is what the signal left
        more = ("train.save_steps=null", "model.overrides={num_hidden_layers: 1, residual_dropout: 0.1}", *more)
        return run(
            recipe.main, recipe.PretrainConfig, [word for word in words(folder) if "overrides" not in word] + [*more]
        )

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_good_order(start, tmp_path, monkeypatch, caplog, number):
    straight = start(tmp_path / "straight") if number == signal.SIGTERM else None
    log = MetricsWriter.on_log

    def stopping(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs, **kwargs)
        if state.global_step == 2:
            os.kill(os.getpid(), number)

    folder, before = tmp_path / "stopped", signal.getsignal(number)
    monkeypatch.setattr(MetricsWriter, "on_log", stopping)
    with caplog.at_level(logging.INFO, "gpt_finetune"), pytest.raises(SystemExit) as caught:
        start(folder)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    said = f"{number.name}: stopped after step 3; checkpoint-3 is saved, go on from it with --resume"
    assert said in caplog.text
    assert "the evaluation due at this step is left out" in caplog.text
    assert receipt(folder)["status"] == "interrupted"
    assert said in receipt(folder)["error"]
    assert find_whole(folder) == (folder / "checkpoint-3", {})
    if straight is None:
        return
    monkeypatch.setattr(MetricsWriter, "on_log", log)
    again = start(folder, "--resume")
    assert receipt(folder)["status"] == "finished"
    assert again["eval_loss"] == straight["eval_loss"]
    rows = [row["step"] for row in read_json_lines(folder / "metrics.jsonl") if row["split"] == "train"]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_is_one_line(start, tmp_path, monkeypatch, capsys):
    import torch

    def fill(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(SystemExit) as caught:
        start(tmp_path / "full", "train.save_steps=2")
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "no space for checkpoint-2: it needs about" in lines[-1]
    assert receipt(tmp_path / "full")["status"] == "failed"


def test_skipped_steps_stand_in_the_receipt(start, tmp_path, monkeypatch):
    from gpt_finetune.training.reliable import ReliableTrainer

    whole = ReliableTrainer._clip_grad_norm

    def clip(self, model):
        if self.state.global_step == 1:
            next(iter(model.parameters())).grad.fill_(float("nan"))
        return whole(self, model)

    monkeypatch.setattr(ReliableTrainer, "_clip_grad_norm", clip)
    start(tmp_path / "run", "train.bad_steps=skip")
    assert receipt(tmp_path / "run")["skipped_steps"] == 1


def test_what_an_interruption_says():
    error = Interrupted(signal.SIGINT, "stopped")
    assert (error.code, str(error), error.agreed) == (130, "SIGINT: stopped", False)
