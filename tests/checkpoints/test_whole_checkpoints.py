"""Checkpoints: signed, verified, chosen, let go; and what is said when there is none to go on from."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pytest
import surviving
import torch

from gpt_finetune.checkpoints import MANIFEST, damage, find_whole, newest_whole, sign
from gpt_finetune.checkpoints.__main__ import main
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import TrainConfig
from gpt_finetune.training.run import Run
from gpt_finetune.training.throughput import matmul_ceiling


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return the folder of a run that saved each of its six steps and kept the last two; do not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    surviving.train(folder)
    return folder


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


def test_a_run_leaves_whole_checkpoints_and_no_pickle_of_its_arguments(run):
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-5", "checkpoint-6"]
    assert damage(run / "checkpoint-5") == damage(run / "checkpoint-6") == []
    signed = json.loads((run / "checkpoint-6" / MANIFEST).read_text(encoding="utf-8"))
    assert signed["step"] == 6
    assert {path.name for path in (run / "checkpoint-6").iterdir()} == {*signed["files"], MANIFEST}
    assert not list(run.rglob("training_args.bin"))


def test_every_bit_of_a_manifest_counts(run):
    path = run / "checkpoint-6" / MANIFEST
    for bit in range(0, path.stat().st_size * 8, 37):
        surviving.flip(path, bit)
        assert damage(run / "checkpoint-6"), bit
        surviving.flip(path, bit)
    assert damage(run / "checkpoint-6") == []


def test_a_file_that_the_manifest_does_not_name_is_passed_by(run):
    (run / "checkpoint-6" / "notes.txt").write_text("mine")
    assert damage(run / "checkpoint-6") == []


def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(run, caplog):
    os.truncate(run / "checkpoint-6" / "optimizer.pt", 100)
    (run / "run.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "gpt_finetune"):
        resumed = Run(str(run), "test", TrainConfig(), resume=True)
    assert resumed.checkpoint == str(run / "checkpoint-5")
    assert "DAMAGED checkpoint-6: optimizer.pt is truncated (100 bytes, not" in caplog.text
    assert (run / "damaged-checkpoint-6").is_dir()  # nothing is removed
    trainer = surviving.train(run, resume=True)
    assert trainer.state.global_step == 6
    assert find_whole(run)[0] == run / "checkpoint-6"


def test_with_none_left_each_is_named(run):
    (run / "checkpoint-6" / "rng_state.pth").unlink()
    (run / "checkpoint-5" / MANIFEST).unlink()
    with pytest.raises(InputError) as caught:
        newest_whole(run)
    assert "checkpoint-6: rng_state.pth is missing" in str(caught.value)
    assert "checkpoint-5: manifest.json is missing" in str(caught.value)
    assert (run / "checkpoint-6").is_dir()  # where nothing can be done, nothing is renamed
    with pytest.raises(InputError, match="holds no checkpoint"):
        newest_whole(run / "checkpoint-6")


def test_a_checkpoint_from_elsewhere_is_signed_by_hand(run, capsys):
    for name in ("checkpoint-5", "checkpoint-6"):
        (run / name / MANIFEST).unlink()
    assert main([str(run)]) == 1
    assert "manifest.json is missing" in capsys.readouterr().out
    assert main(["--sign", str(run / "checkpoint-6")]) == 0
    assert newest_whole(run) == run / "checkpoint-6"


def test_what_a_killed_run_has_left_is_removed_and_said(tmp_path, caplog):
    left = tmp_path / "run" / ".saving" / "checkpoint-3"
    left.mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "gpt_finetune"):
        surviving.train(tmp_path / "run", max_steps=1)
    assert "removed what a killed run has left of a save: checkpoint-3" in caplog.text
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1"]


def test_the_best_checkpoint_stays_and_is_loaded(tmp_path):
    """The highest loss is asked for, which is that of the first steps."""
    asked = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    fields = {"eval_steps": 1, "save_total_limit": 1, "trainer": asked}
    trainer = surviving.train(tmp_path / "run", evaluate=surviving.rows(8), **fields)
    best = tmp_path / "run" / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_global_step < 6
    assert trainer.state.best_model_checkpoint == str(best)
    assert damage(best) == []
    weights = surviving.state_of(best)["weights"]
    assert all(torch.equal(trainer.model.state_dict()[name], weight) for name, weight in weights.items())
    record = json.loads((best / "trainer_state.json").read_text(encoding="utf-8"))
    assert record["best_model_checkpoint"] == str(best)


def test_a_signature_waits_for_all_files(tmp_path):
    folder = tmp_path / "checkpoint-1"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "0.distcp").write_bytes(b"weights")
    sign(folder, 1)
    assert damage(folder) == []
    (folder / "shards" / "0.distcp").write_bytes(b"heights")
    assert damage(folder) == ["shards/0.distcp is altered (its SHA-256 is another)"]


def test_measuring_the_machine_draws_none_of_the_runs_random_numbers():
    """It did: a run resumed in a new process measured once more, and its dropout went another way."""
    before = torch.random.get_rng_state()
    matmul_ceiling.__wrapped__("cpu", torch.float32, 8, 0.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluating_draws_none_of_the_runs_random_numbers(tmp_path):
    """It did, so that a run with dropout went another way where one evaluation was left out."""
    each = surviving.train(tmp_path / "each", evaluate=surviving.rows(8), eval_steps=1)
    surviving.train(tmp_path / "none")
    assert sum("eval_loss" in row for row in each.state.log_history) == 6
    a, b = (surviving.state_of(tmp_path / name / "checkpoint-6") for name in ("each", "none"))
    assert surviving.same(a["weights"], b["weights"])
    assert surviving.same(a["rng_state.pth"], b["rng_state.pth"])
