"""A disk that is too small, at the start and in the middle of a save."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import surviving
import torch

from gpt_finetune.checkpoints import find_whole
from gpt_finetune.checkpoints.space import checkpoint_bytes
from gpt_finetune.errors import InputError

Usage = namedtuple("Usage", "total used free")


def test_the_estimate_is_what_a_checkpoint_takes(tmp_path):
    for optimizer in ("adamw", "muon", "sgd", "adafactor"):
        trainer = surviving.train(tmp_path / optimizer, max_steps=1, optimizer=optimizer)
        taken = sum(path.stat().st_size for path in (tmp_path / optimizer / "checkpoint-1").iterdir())
        estimate = checkpoint_bytes(trainer.model, optimizer)
        assert taken < estimate < taken + 1.2 * (1 << 20), optimizer


def test_checkpoints_that_cannot_fit_are_refused_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**7, 9 * 10**6, 10**6))
    with pytest.raises(InputError, match=r"train.save_total_limit = 2: 3 checkpoints of about .* 1 MB free"):
        surviving.train(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    surviving.train(tmp_path / "other", save_steps=None, max_steps=1)  # none are asked for


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail] unexpected pos 64 vs 0")],
    ids=["system", "torch"],
)
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    save, calls = torch.save, []

    def fill(what, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 9:  # within the third checkpoint
            Path(path).write_bytes(b"torn")
            raise error
        save(what, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(InputError) as caught:
        surviving.train(tmp_path / "run")
    assert "no space for checkpoint-3" in str(caught.value)
    assert "checkpoint-2 is untouched" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert find_whole(tmp_path / "run") == (tmp_path / "run" / "checkpoint-2", {})
    monkeypatch.setattr(torch, "save", save)
    assert surviving.train(tmp_path / "run", resume=True).state.global_step == 6


def test_another_error_of_a_save_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(PermissionError):
        surviving.train(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
