"""Which checkpoint a run goes on from: the newest one whose manifest holds."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from gpt_finetune.checkpoints.manifest import damage
from gpt_finetune.errors import InputError

log = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
ASIDE = "damaged-"


def checkpoints(run_folder: Path) -> list[Path]:
    """Return a run's checkpoints, whole or not, the newest first."""
    named = {path: match for path in run_folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    return sorted((path for path in named if path.is_dir()), key=lambda path: -int(named[path].group(1)))


def find_whole(run_folder: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """Return the newest whole checkpoint, and what is wrong with each one newer than it."""
    damaged: dict[Path, list[str]] = {}
    for path in checkpoints(run_folder):
        problems = damage(path)
        if not problems:
            return path, damaged
        damaged[path] = problems
    return None, damaged


def newest_whole(run_folder: Path, *, main: bool = True) -> Path:
    """Return the checkpoint to go on from.

    Damaged ones that are newer are named in the log and renamed to `damaged-checkpoint-<step>`, so that they are
    neither taken for good nor counted among those to keep. Nothing is removed.

    Args:
        run_folder: The run's folder.
        main: Whether this process speaks and renames; the others only look, and come to the same choice.

    Raises:
        InputError: There is no checkpoint, or none that is whole.
    """
    found, damaged = find_whole(run_folder)
    if found is None and not damaged:
        remedy = "Set train.save_steps to have one next time, or start again with --overwrite"
        raise InputError("resume", True, f"{run_folder} holds no checkpoint", remedy)
    told = {path.name: f"{path.name}: {', '.join(problems)}" for path, problems in damaged.items()}
    if found is None:
        remedy = (
            "Start again with --overwrite; or, if you know that one is whole (it comes from elsewhere, or from before "
            f"there were manifests), sign it: python -m gpt_finetune.checkpoints --sign {next(iter(damaged))}"
        )
        raise InputError("resume", True, f"no checkpoint in {run_folder} is whole ({'; '.join(told.values())})", remedy)
    if main:
        for path in damaged:
            aside = path.with_name(f"{ASIDE}{path.name}")
            log.error(
                "DAMAGED %s. It is now %s; the run goes on from %s instead", told[path.name], aside.name, found.name
            )
            shutil.rmtree(aside, ignore_errors=True)  # the same checkpoint, found damaged before
            path.rename(aside)
    return found
