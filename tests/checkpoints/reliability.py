"""The page of promises: what the long tests measured, gathered in a file of figures and written as Markdown.

Nothing is written unless the environment says so, as in `RELIABILITY_PAGE=docs/reliability.md make test-long`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import textwrap
from pathlib import Path
from typing import Any

from support import ROOT

SURVIVAL = ("killed", "never without", "damaged", "signals", "second signals", "together")
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"

PAGE = """# Reliability

What a run of this toolkit promises, with the figures that its tests measured: real processes, real signals, a tiny
model, for the kills one with dropout, accumulation and several epochs that saves every step, on CPU.
`RELIABILITY_PAGE=docs/reliability.md make test-long` measures again and writes this page, by way of
`benchmarks/results/reliability.json`; so does `make soak` for its row.

Python {python}, torch {torch}, transformers {transformers}.

| promise | how it was put to the test | figure |
|---|---|---|
{rows}

"Bit-identical" compares weights, optimizer, schedule, random states and place in the data at the last step with those
of a run that was never stopped. `tests/checkpoints/test_exact_resume.py` holds the same of a run resumed in the same
process, with dropout and, where not said otherwise, accumulation over an odd number of batches, for {count} settings:
{settings}.
A collator's random numbers follow from seed, epoch and rows (`gpt_finetune.training.drawing`).

## How it works

**Checkpoints.** All files of `checkpoint-N` are written into `.saving/checkpoint-N` in the run's folder, which nothing
that looks for checkpoints sees. They are brought to the disk (fsync); `manifest.json`, with the size and SHA-256 of
each file and a checksum of its own, is written last; one rename gives the checkpoint its name; only then do older ones
go (`train.save_total_limit`). Of several processes each writes its part, all wait, the first signs and renames, all
wait. On several machines the run's folder must be on a file system that they share. A save that was cut short is
removed at the next start, and said. Checkpoints hold no pickle of the training arguments; transformers reads optimizer,
schedule and random states with `weights_only=True`.

**Resuming.** `--resume` takes the newest checkpoint whose files are all as the manifest says. A damaged one is named
with its files and what is wrong, and renamed to `damaged-checkpoint-N`; the run goes on from the one before. Where none
is whole the run does not start. A checkpoint without a manifest counts as damaged, as nothing tells whether it is
whole; one that you trust is signed by `python -m gpt_finetune.checkpoints --sign FOLDER`, and without `--sign` that
command says of any checkpoint whether it is whole.

**Other batches.** A checkpoint says how many samples of its epoch are trained on. `train.batch_size`,
`train.accumulation` and the number of processes may change from one start to the next: the samples that are left of the
epoch follow, in its order, each once (`tests/checkpoints/test_elastic_resume.py`). Steps keep their numbers;
`train.max_steps` stays what it is; where `train.epochs` decides, as many steps follow as the samples left need, and the
schedule is that of the new total. Rows of similar length are looked for among as many as before.

**Streams** go on after the last row that a step was made of: of each source only the file that it stood in is read
again (`stream.npz`). Batch size, accumulation and processes may change; the number of workers may not, nor what its
rows are made of. Deduplication adds 16 bytes a document to each checkpoint.

**Signals.** SIGTERM and Ctrl-C take effect where the optimiser step ends: the checkpoint is saved (also with
`train.save_steps=null`), `run.json` says `interrupted`, the exit code is 143 or 130. An evaluation due at that very
step is left out, and said. A second signal, a second or more after the first, ends the process at once; a save that is
under way then leaves what was saved before as it was. Of several processes, one that receives the signal is enough.
`accelerate launch` of several processes itself exits with 1, as it does for any exit code of theirs.

**Steps that are not finite.** Loss and gradient norm of each optimiser step are looked at before the optimiser acts.
`train.bad_steps=stop`, the default, ends the run with the step, the rows of the data set that it was made of, and the
first tensor that holds NaN or infinity; `skip` takes the step's gradients away, counts it in `metrics.jsonl` and
`run.json`, and goes on. On a GPU a look makes host and device wait for each other: `stop` therefore reads a step's
figures one step later, and before each save, so that a spoilt model is never saved, but the tensor that it names is a
parameter that the step has spoilt; `skip` reads at each step. This later look is tested on the CPU only. Rows are
named where the order follows from seed and epoch, not in a stream.

**Space.** Before the first step the size of `save_total_limit + 1` checkpoints is compared with what is free. A disk
that fills up in the middle of a save ends the run with one line that says what is needed; the checkpoints before it
stay.

**Random numbers.** Neither evaluations nor measurements of the machine draw from those that training uses, so a run
with more evaluations, or resumed in a new process, has the same dropout.
"""


def record(key: str, promise: str, how: str, figure: str) -> None:
    """Note a row of the page under a key of its own, and write the page."""
    if not (page := os.environ.get("RELIABILITY_PAGE")):
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows[key] = {"promise": promise, "how": how, "figure": figure}
    RESULTS.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(ROOT / page, rows)


def write_page(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Write the page from its rows."""
    from test_exact_resume import SETTINGS

    settings = textwrap.fill("; ".join(SETTINGS), 120)
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers")}
    table = "\n".join(f"| {row['promise']} | {row['how']} | {row['figure']} |" for row in rows.values())
    path.write_text(
        PAGE.format(python=platform.python_version(), rows=table, count=len(SETTINGS), settings=settings, **versions),
        encoding="utf-8",
    )


def record_survival(figures: dict[str, Any]) -> None:
    """Note the figures of `surviving.py`."""
    kills, damage, stops, two = (figures[name] for name in ("kills", "damage", "stops", "together"))
    rows = [
        (
            "A run that is killed goes on as if it had not been",
            f"`kill -9` of {kills['tried']} runs, {kills['inside_a_save']} of them at points chosen evenly among the "
            f"{kills['points_in_the_saves_of_a_run']} of all its saves (around each file, rename and removal, or in "
            f"the middle of a file), the rest at random; "
            f"{kills['torn_staging']} left a part of a save",
            f"{kills['resumed']} of {kills['tried']} resumed, {kills['identical']} bit-identical",
        ),
        (
            "There is a whole checkpoint at every moment after the first save",
            "looked at after each of these kills",
            f"{kills['lost']} of {kills['tried']} without",
        ),
        (
            "Damage is found, named, and fallen back from",
            f"each of the {damage['files']} files of a checkpoint missing, cut to half, empty, or with one bit flipped",
            f"{damage['found_and_named']} of {damage['cases']} found and named, {damage['fell_back']} fell back",
        ),
        (
            "SIGTERM and Ctrl-C save and stop",
            f"{stops['signals']} signals at random moments of runs that save nothing else",
            f"{stops['exit_codes_right']} exit codes right, {stops['identical']} bit-identical after the resume",
        ),
        (
            "A second signal stops at once and hurts nothing",
            f"{stops['second_signals']} runs whose save hangs in the middle",
            f"{stops['second_identical']} bit-identical after the resume",
        ),
        (
            "Processes that train together stop together",
            f"SIGTERM to one of two processes (gloo), {two['signals']} times",
            f"{two['both_stopped']} times both stopped, {two['identical']} bit-identical after the resume",
        ),
    ]
    for key, row in zip(SURVIVAL, rows, strict=True):
        record(key, *row)
