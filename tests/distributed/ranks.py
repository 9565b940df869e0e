"""Recipes and `trajectories`, one after another, in processes that are there already: imports are what costs time.

    accelerate launch --config_file configs/accelerate/cpu-2.yaml tests/distributed/ranks.py '[["pretrain", [...]]]'

With `fsdp` before the list, Accelerate takes the CPU for a GPU. It would else read an FSDP configuration, run plain
data parallelism, and say nothing (accelerate 1.15, `AcceleratorState.__init__`).
"""

from __future__ import annotations

import json
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from support import load_recipe
from trajectories import write

from gpt_finetune.config import run
from gpt_finetune.training import run as runs


def main() -> None:
    if sys.argv[1] == "fsdp":
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    jobs = json.loads(sys.argv[-1])
    part = runs._part
    runs._part = lambda: PartialState().wait_for_everyone()  # a group that has parted would not meet again
    for place, (name, words) in enumerate(jobs):
        if place == len(jobs) - 1:
            runs._part = part
        if name == "trajectories":
            write(*words)
            continue
        recipe = load_recipe(name)
        run(recipe.main, getattr(recipe, f"{name.title()}Config"), words)


if __name__ == "__main__":
    main()
