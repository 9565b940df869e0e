"""Make some steps of a past run again, from its receipt, and say where the two part, if they do.

    python recipes/replay.py --run runs/quickstart --first 1 --last 50
    python recipes/replay.py --run runs/sentiment-en --output_dir runs/again --overwrite

The run begins at its newest whole checkpoint before the first of these steps, or at the start. What it logged then and
now is compared to the last bit, and so are the weights where it keeps a checkpoint of the last step; what else differs
(code, packages, threads, device, data, configuration) is named. Exit code 1 when they part. Nothing is written into the
past run's folder. For runs of one process, of every recipe that trains: pretrain, finetune, classify, tag, answer,
choose, seq2seq.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gpt_finetune.config import run
from gpt_finetune.errors import InputError


@dataclass
class ReplayConfig:
    """Make some steps of a past run again, and compare.

    Args:
        run: Folder of the past run.
        first: First step to compare.
        last: Last step to compare; null means the last one that was logged.
        output_dir: Folder for what is made again.
        overwrite: Replace the replay that output_dir holds.
    """

    run: str = "runs/pretrain"
    first: int = 1
    last: int | None = None
    output_dir: str = "runs/replay"
    overwrite: bool = False


def make_room(config: ReplayConfig) -> Path:
    """Return the folder for what is made again, empty or not there."""
    from gpt_finetune.training.replay import OUTCOME

    past, target = Path(config.run).resolve(), Path(config.output_dir).resolve()
    if target == past or past in target.parents or target in past.parents:
        problem = "it is in the past run's folder or holds it, which stays as it is"
        raise InputError("output_dir", config.output_dir, problem, "Give a folder beside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not (config.overwrite and (target / OUTCOME).exists()):
            remedy = "Add --overwrite if it is a replay to be replaced, or give another folder"
            raise InputError("output_dir", config.output_dir, "it is not empty", remedy)
        shutil.rmtree(target)
    return target


def main(config: ReplayConfig) -> None:
    """Run the recipe; ends with exit code 1 when the two part."""
    from gpt_finetune.training.replay import read_past, replay

    past = read_past(Path(config.run))
    outcome = replay(past, Path(__file__).parent, make_room(config), config.first, config.last)
    print(outcome)
    if not outcome.same:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main, ReplayConfig)
