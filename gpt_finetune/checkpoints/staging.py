"""Where a checkpoint is written before it bears its name: a hidden folder on the same file system.

A run that is killed while it saves leaves a part of a checkpoint there, where nothing looks for one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gpt_finetune.checkpoints.choice import checkpoints
from gpt_finetune.checkpoints.manifest import sign, sync_folder

STAGING = ".saving"


def commit(run_folder: Path, name: str, step: int) -> None:
    """Sign a staged checkpoint and give it its name, in one move.

    Args:
        run_folder: The run's folder; the checkpoint lies in its staging folder.
        name: Of the checkpoint, `checkpoint-<step>`.
        step: Optimiser steps that it stands for.
    """
    staged, final = run_folder / STAGING / name, run_folder / name
    sign(staged, step)
    if final.exists():  # left by a run that went further than the checkpoint which this one goes on from
        final.rename(run_folder / STAGING / f"replaced-{name}")
    staged.rename(final)
    sync_folder(run_folder)


def rotate(run_folder: Path, limit: int | None, keep: set[Path]) -> None:
    """Let the oldest checkpoints go until `limit` are left; each leaves its name before its files go, one by one.

    Args:
        run_folder: The run's folder.
        limit: How many stay; None or 0 keeps all.
        keep: Those that stay in any case: the one just written, and the best one.
    """
    oldest_first = checkpoints(run_folder)[::-1]
    left = len(oldest_first)
    for path in oldest_first:
        if not limit or left <= max(limit, len(keep)):
            break
        if path not in keep:
            aside = run_folder / STAGING / f"old-{path.name}"
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            left -= 1
    clear(run_folder)


def clear(run_folder: Path) -> list[str]:
    """Remove the staging folder; return the names of the checkpoints whose parts lay in it."""
    staging = run_folder / STAGING
    left = sorted(path.name for path in staging.glob("*")) if staging.is_dir() else []
    shutil.rmtree(staging, ignore_errors=True)
    return left
