"""How long a user waits: for help, for an error in a configuration, for the first step of a run whose data is cached.

    PYTHONPATH=. python benchmarks/startup.py

Each in a process of its own, in turns, beside what merely importing torch and transformers' Trainer takes. The first
step is that of a tiny model on text that an earlier run has packed: from the command to the first line of
`metrics.jsonl`. Medians; a run before the first round fills the caches. Writes `benchmarks/results/startup.json`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from peers.measuring import ROOT, Figures, arguments, in_turns, machine, medians, write

CLI = [sys.executable, "-m", "gpt_finetune.cli"]
TEXT = "What a token costs, it costs once more in the backward pass, and then once more.\n"


def seconds(command: list[str], code: int = 0) -> float:
    """Return how long a command takes.

    Raises:
        SystemExit: It ends with another code than is meant.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    took = time.perf_counter() - start
    if done.returncode != code:
        raise SystemExit(f"error: {command} ended with {done.returncode}, not {code}: {done.stderr[-500:]}")
    return took


def first_step(words: list[str], metrics: Path) -> float:
    """Return how long a training takes until its first line of metrics is written; it is then left to end."""
    metrics.unlink(missing_ok=True)
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as run:
        while not (metrics.is_file() and metrics.stat().st_size):
            if run.poll() is not None and not metrics.is_file():
                raise SystemExit(
                    f"error: {words} ended before a step: {run.stdout.read()[-500:] if run.stdout else ''}"
                )
            time.sleep(0.01)
        took = time.perf_counter() - start
        run.communicate()
    return took


def training(folder: Path) -> list[str]:
    """Return the command of a tiny run on text of its own."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for i in range(20):
        (text / f"{i}.txt").write_text(f"{i}: {TEXT * 50}", encoding="utf-8")
    model = ["model.preset=tiny", "train.max_steps=1", "train.log_steps=1", "train.precision=float32"]
    data = [f"data.sources=[{{path: {text}}}]", f"data.cache_dir={folder / 'cache'}", "data.block_size=32"]
    run = [f"output_dir={folder / 'run'}", "overwrite=true", "tokenizer.vocab_size=300", "train.batch_size=4"]
    return [*CLI, "pretrain", *model, *data, *run]


def ways(folder: Path) -> dict[str, Callable[[], Figures]]:
    """Return what is timed, by name."""
    broken = folder / "broken.yaml"
    broken.write_text("train:\n  max_step: 10\n", encoding="utf-8")
    timed: dict[str, Callable[[], float]] = {
        "import torch": lambda: seconds([sys.executable, "-c", "import torch"]),
        "from transformers import Trainer": lambda: seconds([sys.executable, "-c", "from transformers import Trainer"]),
        "gpt-finetune --help": lambda: seconds([*CLI, "--help"]),
        "gpt-finetune pretrain --help": lambda: seconds([*CLI, "pretrain", "--help"]),
        "error in a configuration": lambda: seconds([*CLI, "pretrain", "--config", str(broken)], code=2),
        "error in a value": lambda: seconds([*CLI, "finetune", "train.learning_rate=fast"], code=2),
        "first step, data cached": lambda: first_step(training(folder), folder / "run" / "metrics.jsonl"),
    }
    return {name: (lambda act=act: {"seconds": act()}) for name, act in timed.items()}


def main() -> None:
    """Measure in turns, print the medians and write them down."""
    given = arguments("How long a user waits.", 3).parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with TemporaryDirectory() as folder:
        timed = ways(Path(folder))
        for act in timed.values():
            act()
        measured = in_turns(timed, given.rounds)
    found = {name: medians(rows, digits=3)["seconds"] for name, rows in measured.items()}
    write("startup", {**machine(), "rounds": given.rounds, "seconds": found}, given.results)


if __name__ == "__main__":
    main()
