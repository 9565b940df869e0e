"""A soak: a training that is killed, stopped and resumed at random for some minutes must end as the straight one does.

    python tests/checkpoints/soak.py --minutes 20 --output soak.json

A supervisor starts a tiny run (dropout, accumulation, several epochs) in a process of its own, ends it after a random
time by SIGKILL, SIGTERM or SIGINT, looks whether a whole checkpoint is there, and starts it again, until it has made
its last step; then all that it goes on from is compared with a run that nobody has touched, and the next one begins.
Progress goes to standard error, the outcome as JSON to the file, and as a row into the page that RELIABILITY_PAGE
names. The exit code is 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import surviving
import transformers.utils.logging
from reliability import record
from transformers import TrainerCallback

ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
STEPS = 40
# one setting a run, in turn, the seed says which is the first: what has to be brought back differs
SETTINGS: dict[str, dict[str, Any]] = {
    "a checkpoint every step": {"save_steps": 1},
    "every seventh step": {"save_steps": 7},
    "evaluations": {"save_steps": 5, "eval_steps": 3},
    "muon": {"save_steps": 3, "optimizer": "muon"},
    "two workers": {"save_steps": 3, "workers": 2},
}


class Pace(TrainerCallback):
    """Gives each step some time, so that signals arrive at all places; says when training begins."""

    def __init__(self, began: Path) -> None:
        self.began = began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began.touch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.02)


def work(folder: Path, name: str, *, resume: bool = False, pace: bool = True) -> None:
    """Train one run, from its start or its newest whole checkpoint."""
    fields = {"max_steps": STEPS, **SETTINGS[name]}
    evaluate = surviving.rows(8) if "eval_steps" in fields else None
    callbacks = [Pace(folder.with_suffix(".began"))] if pace else []
    surviving.train(folder, resume=resume, callbacks=callbacks, evaluate=evaluate, **fields)


def interrupted(folder: Path, name: str, resume: bool, number: int, delay: float, *, early: bool) -> int:
    """Start or go on with a run, send it a signal after a delay; return its exit code, 0 if it had ended before.

    The delay counts from the first step, or if `early` is set, which is for kills only, from the start.
    """
    began = folder.with_suffix(".began")
    began.unlink(missing_ok=True)
    child = surviving._fork(lambda: work(folder, name, resume=resume))
    while not early and not began.exists():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(child, number)  # a child that has ended waits to be asked for its code
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = number != signal.SIGKILL and code not in ENDS.values() and (folder / f"checkpoint-{STEPS}").exists()
    return 0 if done else code  # signals after the training are nobody's concern


def soak(folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Kill and resume until the time is over, and the run at hand at its end; return the counts."""
    from gpt_finetune.checkpoints import find_whole

    draw, begin = random.Random(seed), time.monotonic()
    found: dict[str, Any] = {
        "runs": 0,
        "identical": 0,
        "starts": 0,
        "wrong_exit_codes": 0,
        "lost": 0,
        "torn_staging": 0,
    }
    found |= {f"ended_by_{number.name}": 0 for number in ENDS}
    straight: dict[str, dict[str, Any]] = {}
    while time.monotonic() - begin < seconds or not found["runs"]:
        name = list(SETTINGS)[(found["runs"] + seed) % len(SETTINGS)]
        if name not in straight:
            assert surviving.forked(lambda: work(folder / "straight", name, pace=False)) == 0  # noqa: B023
            straight[name] = surviving.state_of(folder / "straight" / f"checkpoint-{STEPS}")
            shutil.rmtree(folder / "straight")
        run = folder / f"run-{found['runs']}"
        code, whole = -1, None
        while code != 0:
            number = draw.choice(list(ENDS))
            early = number == signal.SIGKILL and draw.random() < 0.3
            code = interrupted(run, name, whole is not None, number, draw.expovariate(1 / 0.6), early=early)
            found["starts"] += 1
            found["wrong_exit_codes"] += code not in (0, ENDS[number])
            found[f"ended_by_{number.name}"] += code == ENDS[number]
            found["torn_staging"] += (run / ".saving").exists()
            before, whole = whole, find_whole(run)[0] if run.exists() else None
            found["lost"] += before is not None and whole is None
            if code not in (0, *ENDS.values()):
                break
        found["runs"] += 1
        found["settings"] = list(straight)
        found["identical"] += code == 0 and surviving.same(
            surviving.state_of(run / f"checkpoint-{STEPS}"), straight[name]
        )
        shutil.rmtree(run)
        ends = ", ".join(f"{found[f'ended_by_{n.name}']} {n.name}" for n in ENDS)
        passed = time.monotonic() - begin
        told = f"{passed / 60:5.1f} min: {found['identical']} of {found['runs']} runs identical ({name}); {ends}"
        print(f"{told}; {found['lost']} without a checkpoint", file=sys.stderr, flush=True)
    return {"minutes": round((time.monotonic() - begin) / 60, 1), "seed": seed, "steps": STEPS, **found}


def kept(found: dict[str, Any]) -> bool:
    """Tell whether each promise was kept each time."""
    return found["identical"] == found["runs"] and not found["wrong_exit_codes"] and not found["lost"]


def note(found: dict[str, Any]) -> None:
    """Note the row of the page of promises."""
    ends = sum(found[f"ended_by_{number.name}"] for number in ENDS)
    by = ", ".join(f"{found[f'ended_by_{number.name}']} {number.name}" for number in ENDS)
    runs = f"{found['runs']} runs of {found['steps']} steps ({'; '.join(found['settings'])})"
    how = (
        f"{found['minutes']:.0f} minutes, {runs}: ended {ends} times at random ({by}) and resumed; "
        f"{found['torn_staging']} left a part of a save"
    )
    figure = f"{found['identical']} of {found['runs']} bit-identical, {found['lost']} without a whole checkpoint"
    record("soak", "Nothing adds up over many stops (`make soak`)", how, figure)


def main() -> int:
    from gpt_finetune.hub import travel

    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the outcome")
    options = parser.parse_args()
    travel.check_class = lambda *arguments: None  # its own tests are elsewhere; it takes most of a tiny save's time
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        surviving.train(Path(folder) / "warm", max_steps=2)  # what it imports need not be imported after each fork
        found = soak(Path(folder), 60 * options.minutes, options.seed)
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    note(found)
    return 0 if kept(found) else 1


if __name__ == "__main__":
    sys.exit(main())
