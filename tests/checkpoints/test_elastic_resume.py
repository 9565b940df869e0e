"""A run may go on with other batches: every sample of the epoch is trained on once, in the order that it had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import surviving
import torch
from reliability import record
from support import ROOT
from transformers import TrainerCallback

from gpt_finetune.errors import InputError

ROWS = 45  # no multiple of any batch here: the last one of an epoch is short
FIELDS = {"batch_size": 4, "accumulation": 1, "max_steps": None, "epochs": 2.0, "save_steps": 1, "save_total_limit": 99}


def numbered() -> list[dict[str, torch.Tensor]]:
    """Rows that say which they are by their first two tokens."""
    made = surviving.rows(ROWS)
    for i, row in enumerate(made):
        row["input_ids"][0] = 2 + i
    return made


class Unequal(torch.utils.data.Dataset):
    """The same rows, of unequal lengths."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: ids[: 4 + 5 * index % 9] for name, ids in numbered()[index].items()}


def pad(batch):
    stack = torch.nn.utils.rnn.pad_sequence
    return {name: stack([row[name] for row in batch], batch_first=True) for name in batch[0]}


class Seen(TrainerCallback):
    """Notes of each optimiser step which rows it was made of."""

    def __init__(self, trainer) -> None:
        self.steps: list[list[int]] = []
        self.epochs: list[float] = []
        self._now: list[int] = []
        step = trainer.training_step

        def watched(model, inputs, *more):
            self._now += (inputs["input_ids"][:, 0] - 2).tolist()
            return step(model, inputs, *more)

        trainer.training_step = watched

    def on_optimizer_step(self, *_, **__) -> None:
        self.steps.append(self._now)
        self._now = []

    def on_log(self, args, state, control, logs=None, **__) -> None:
        if "loss" in (logs or {}):
            self.epochs.append(state.epoch)


def run(folder: Path, *, resume: bool = False, collate=pad, data=None, **fields):
    trainer = surviving.make_trainer(folder, data=data or numbered(), **{**FIELDS, **fields})
    trainer.data_collator = collate
    seen = Seen(trainer)
    trainer.add_callback(seen)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer, seen


def go_on(begun: Path, step: int, folder: Path, **fields):
    shutil.copytree(begun / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return run(folder, resume=True, **fields)


def flat(steps: list[list[int]]) -> list[int]:
    return [row for step in steps for row in step]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(folder)[1].steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "other"),
    [
        (5, {"batch_size": 8}),
        (5, {"accumulation": 4}),
        (7, {"batch_size": 2, "accumulation": 3}),
        (12, {"batch_size": 8}),  # an epoch's end
        (17, {"batch_size": 3}),
    ],
    ids=str,
)
def test_every_sample_once_in_the_order_it_had(straight, tmp_path, step, other):
    begun, whole = straight
    trainer, seen = go_on(begun, step, tmp_path, **other)
    assert flat(whole[:step]) + flat(seen.steps) == flat(whole)
    rows = other.get("batch_size", 4) * other.get("accumulation", 1)
    ends = {ROWS - len(flat(whole[:step])) % ROWS, 2 * ROWS - len(flat(whole[:step]))}
    taken = 0
    for each in seen.steps:
        taken += len(each)
        assert len(each) == rows or taken in ends
    assert trainer.state.global_step == trainer.state.max_steps == step + len(seen.steps)
    assert seen.epochs == sorted(seen.epochs)
    assert seen.epochs[-1] == 2.0
    done = len(flat(whole[:step])) + len(seen.steps[0])
    assert seen.epochs[0] == pytest.approx(
        done / ROWS, abs=0.02
    )  # where an epoch begins, its short last batch counts whole


@pytest.mark.slow
def test_what_went_on_goes_on_again_to_the_bit(straight, tmp_path):
    """Twice resumed with the same other batches is once resumed with them; and back to those of the beginning."""
    begun, whole = straight
    once, _ = go_on(begun, 5, tmp_path / "once", batch_size=6)
    twice, seen = go_on(tmp_path / "once", 7, tmp_path / "twice", batch_size=6)
    last = f"checkpoint-{once.state.global_step}"
    assert twice.state.global_step == once.state.global_step
    states = [surviving.state_of(tmp_path / name / last) for name in ("once", "twice")]
    assert surviving.same(*states)
    _, back = go_on(tmp_path / "once", 7, tmp_path / "back")
    assert flat(back.steps) == flat(seen.steps) == flat(whole)[5 * 4 + 2 * 6 :]


@pytest.mark.slow
def test_max_steps_stay_what_they_are(straight, tmp_path):
    begun, whole = straight
    trainer, seen = go_on(begun, 5, tmp_path, batch_size=9, max_steps=14)
    assert trainer.state.global_step == 14
    assert len(seen.steps) == 9
    assert flat(seen.steps)[: 2 * ROWS - 20] == flat(whole)[20:]


@pytest.mark.slow
def test_rows_of_similar_length_keep_their_order(tmp_path):
    fields = {"data": Unequal(), "trainer": {"train_sampling_strategy": "group_by_length"}}
    _, whole = run(tmp_path / "straight", **fields)
    _, seen = go_on(tmp_path / "straight", 5, tmp_path / "again", batch_size=8, **fields)
    assert flat(whole.steps[:5]) + flat(seen.steps) == flat(whole.steps)


def test_a_stream_keeps_its_batches(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(numbered())

    fields = {"data": Stream(), "max_steps": 4, "save_steps": 2}
    run(tmp_path, **fields)
    for folder in tmp_path.glob("checkpoint-4"):
        shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"train\.batch_size = 8: .* had 4 with accumulation 1 in 1 proc.*same three"):
        run(tmp_path, resume=True, **fields, batch_size=8)


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_with_another_number_of_processes(tmp_path, first, then):
    """Real processes of 4 rows each: 5 steps by some, the rest of the epoch by others."""
    seen: list[int] = []
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "checkpoints")))
    for part, processes in (("begin", first), ("go on", then)):
        config = ROOT / "configs" / "accelerate" / ("cpu-2.yaml" if processes == 2 else "single.yaml")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        done = subprocess.run(
            [*launch, str(Path(__file__).with_name("elastic.py")), str(tmp_path), part],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told = [json.loads((tmp_path / f"{part}-{rank}.json").read_text()) for rank in range(processes)]
        seen += [row for step in zip(*told, strict=True) for rank in step for row in rank]
    # An epoch that does not divide is filled up with rows from its beginning, so that no process waits.
    assert sorted(seen[:ROWS]) == list(range(ROWS))
    assert set(seen[ROWS:]) <= set(seen[:ROWS])
    assert len(seen) < ROWS + 8
    how = f"{first}, then {then}, within an epoch of {ROWS} rows (gloo)"
    record(f"elastic {first} to {then}", "A run goes on with another number of processes", how, "each row once")
