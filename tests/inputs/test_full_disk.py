"""Disks that are full, read-only, over quota or slow, under a real recipe: one line, and the old checkpoint stays."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time

import pytest

from gpt_finetune import report
from gpt_finetune.checkpoints import find_whole
from gpt_finetune.training.callbacks import MetricsWriter


def mounts(*words):
    """Tell whether a mount could be made or undone."""
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path):
    """Return a maker of small disks of memory, each mounted in the test's folder."""
    made = []

    def make(size):
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        if os.name != "posix" or not mounts("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)):
            pytest.skip("no tmpfs may be mounted here: it takes root and the right to mount")
        made.append(place)
        return place

    yield make
    for place in made:
        mounts("umount", str(place))


@pytest.fixture
def begin(start, tmp_path, capsys, monkeypatch):
    """Return a starter of a run of four steps with a checkpoint each; it returns what was said on stderr."""
    rows = "".join(json.dumps({"text": f"the answer {i} is good, the plot {i} is bad"}) + "\n" for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")

    monkeypatch.setattr(report, "write_report", lambda folder: folder)  # which is most of a tiny run's time

    def begin(folder, *words):
        more = ("train.max_steps=4", "train.save_steps=1", "train.save_total_limit=1", "train.log_steps=100", *words)
        try:
            start("pretrain", f"output_dir={folder}", "data.sources=[{path: {folder}/rows.jsonl}]", *more)
            code = 0
        except SystemExit as error:
            code = error.code
        return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]

    return begin


def after_step(monkeypatch, step, act):
    """Do something once, when a step's checkpoint has been written."""
    on_save = getattr(MetricsWriter, "on_save", lambda *args, **kwargs: None)

    def acting(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if state.global_step == step:
            act()

    monkeypatch.setattr(MetricsWriter, "on_save", acting, raising=False)


def fill(place):
    """Write to a disk until nothing more goes in."""
    with (place / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_disk_too_small_is_said_before_the_start(disk, begin):
    place = disk("2m")
    code, said = begin(place / "run")
    assert code == 2
    assert len(said) == 1
    assert "train.save_total_limit = 1: 2 checkpoints of about" in said[0]
    assert "MB free" in said[0]
    assert not list((place / "run").glob("checkpoint*"))


def test_a_disk_that_fills_up_leaves_a_checkpoint_to_go_on_from(disk, begin, monkeypatch):
    place = disk("8m")
    with monkeypatch.context() as patch:
        after_step(patch, 2, lambda: fill(place))
        code, said = begin(place / "run")
    assert code == 2
    assert len(said) == 1, said
    assert "no space for checkpoint-3: it needs about" in said[0]
    assert "checkpoint-2 is untouched. Free space, then go on with --resume" in said[0]
    assert find_whole(place / "run") == (place / "run" / "checkpoint-2", {})
    assert json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))["recipe"] == "pretrain"
    (place / "ballast").unlink()
    assert begin(place / "run", "--resume") == (0, [])
    assert json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))["status"] == "finished"


@pytest.mark.long
def test_a_disk_that_is_full_at_the_end_is_one_line(disk, begin, monkeypatch):
    place = disk("8m")
    after_step(monkeypatch, 4, lambda: fill(place))
    code, said = begin(place / "run")
    assert code == 2
    assert len(said) == 1, said
    assert "the disk takes nothing more" in said[0]
    assert "No space left on device" in said[0]
    assert find_whole(place / "run")[0] == place / "run" / "checkpoint-4"


def test_a_cache_on_a_full_disk_is_one_line(disk, begin, tmp_path):
    place = disk("4m")
    fill(place)
    code, said = begin(tmp_path / "run", f"data.cache_dir={place}/cache")
    assert (code, len(said)) == (2, 1)
    assert "No space left on device" in said[0]


@pytest.mark.long
def test_a_disk_that_becomes_read_only_is_one_line(disk, begin, monkeypatch):
    place = disk("8m")
    after_step(monkeypatch, 2, lambda: mounts("mount", "-o", "remount,ro", str(place)))
    code, said = begin(place / "run")
    assert (code, len(said)) == (2, 1)
    assert "Read-only file system" in said[0]
    assert find_whole(place / "run")[0] == place / "run" / "checkpoint-2"
    code, said = begin(place / "run", "--resume")
    assert (code, len(said)) == (2, 1)
    assert "output_dir" in said[0]
    assert "Read-only file system. Give a folder that you may write to" in said[0]


def test_a_quota_that_is_used_up_is_one_line(begin, tmp_path, monkeypatch):
    fsync = os.fsync

    def over(handle):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    after_step(monkeypatch, 2, lambda: monkeypatch.setattr(os, "fsync", over))
    code, said = begin(tmp_path / "run")
    assert (code, len(said)) == (2, 1)
    assert "no space for checkpoint-3: it needs about" in said[0]
    assert "checkpoint-2 is untouched" in said[0]
    monkeypatch.setattr(os, "fsync", fsync)
    assert find_whole(tmp_path / "run") == (tmp_path / "run" / "checkpoint-2", {})


@pytest.mark.long
def test_a_slow_disk_takes_its_time_and_a_signal_waits_for_it(begin, tmp_path, monkeypatch):
    fsync, waited = os.fsync, []

    def slow(handle):
        waited.append(handle)
        time.sleep(0.05)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    assert begin(tmp_path / "straight") == (0, [])
    assert len(waited) > 40
    figures = json.loads((tmp_path / "straight" / "run.json").read_text(encoding="utf-8"))["figures"]

    def signalling(handle):
        slow(handle)
        if (tmp_path / "stopped" / "checkpoint-1").exists() and not stopped:
            stopped.append(handle)
            os.kill(os.getpid(), signal.SIGTERM)

    stopped: list[int] = []
    monkeypatch.setattr(os, "fsync", signalling)
    assert begin(tmp_path / "stopped")[0] == 128 + signal.SIGTERM
    whole, damaged = find_whole(tmp_path / "stopped")
    assert whole.name in ("checkpoint-2", "checkpoint-3")
    assert not damaged
    monkeypatch.setattr(os, "fsync", slow)
    assert begin(tmp_path / "stopped", "--resume") == (0, [])
    again = json.loads((tmp_path / "stopped" / "run.json").read_text(encoding="utf-8"))["figures"]
    assert again["eval_loss"] == figures["eval_loss"]
