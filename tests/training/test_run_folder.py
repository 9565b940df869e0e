"""Whose folder it is: a run that failed before its first step gives it back, any other keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gpt_finetune.errors import InputError
from gpt_finetune.training.run import Run


@dataclass
class Config:
    output_dir: str = "somewhere"
    resume: bool = False
    overwrite: bool = False


def begin(folder: Path) -> Run:
    return Run(str(folder), "pretrain", Config())


def fail(folder: Path) -> None:
    with pytest.raises(InputError), begin(folder):
        raise InputError("data.sources[0].path", "x.txt", "no such file", "Give one that exists")


def test_a_run_refused_for_its_data_gives_its_folder_back(tmp_path, caplog):
    fail(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").touch()  # made when the trainer is, empty until the first step
    with begin(tmp_path / "run") as run:
        assert run.receipt["status"] == "running"
    assert "it failed before its first step" in caplog.text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoint-2/model.safetensors", ".saving/x", "notes.txt"])
def test_a_run_that_left_something_keeps_its_folder(left, tmp_path):
    fail(tmp_path / "run")
    path = tmp_path / "run" / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="it already holds a run"):
        begin(tmp_path / "run")
    assert path.exists()


@pytest.mark.parametrize("status", ["running", "interrupted", "done"])
def test_a_run_that_did_not_fail_keeps_its_folder(status, tmp_path):
    fail(tmp_path / "run")
    receipt = tmp_path / "run" / "run.json"
    receipt.write_text(json.dumps({"status": status}), encoding="utf-8")
    with pytest.raises(InputError, match="it already holds a run"):
        begin(tmp_path / "run")


def test_nothing_to_resume_is_said_of_a_run_that_never_began(tmp_path):
    fail(tmp_path / "run")
    with pytest.raises(InputError, match="checkpoint"):
        Run(str(tmp_path / "run"), "pretrain", Config(), resume=True)


def test_what_one_command_did_is_not_the_runs(tmp_path):
    """`--config RUN/config.yaml --resume` goes on, and a copy of it begins elsewhere, whatever began the run."""
    for number, config in enumerate((Config(overwrite=True), Config(resume=True))):
        with Run(str(tmp_path / f"{number}"), "pretrain", config):
            kept = yaml.safe_load((tmp_path / f"{number}" / "config.yaml").read_text(encoding="utf-8"))
        assert kept == {"output_dir": "somewhere", "resume": False, "overwrite": False}
