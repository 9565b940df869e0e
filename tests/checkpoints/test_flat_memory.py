"""Two thousand steps take no more memory than two hundred."""

from __future__ import annotations

import gc
import json

import psutil
import pytest
import surviving
import torch
from reliability import record
from transformers import TrainerCallback

from gpt_finetune.training.callbacks import MetricsWriter

STEPS = 2000
BEGIN = 200  # allocators, caches and the first checkpoints are there by then


class Resident(TrainerCallback):
    """Notes the process's resident memory every hundred steps, in bytes, and how many tensors there are."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.tensors: dict[int, int] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 100 == 0:
            gc.collect()
            self.memory[state.global_step] = psutil.Process().memory_info().rss
            self.tensors[state.global_step] = sum(torch.is_tensor(each) for each in gc.get_objects())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_resident_memory_is_flat(tmp_path, record_property):
    """With logs, evaluations and checkpoints as a long run has them."""
    resident = Resident()
    options = {"max_steps": STEPS, "log_steps": 10, "save_steps": 200, "eval_steps": 200}
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    surviving.train(tmp_path / "run", callbacks=[writer, resident], evaluate=surviving.rows(8), **options)
    grown = (resident.memory[STEPS] - resident.memory[BEGIN]) / 1e6
    record_property("grown_mb", round(grown, 2))
    print(
        json.dumps({"grown_mb": round(grown, 2), "rss_mb": {s: round(b / 1e6, 1) for s, b in resident.memory.items()}})
    )
    assert grown < 4
    how = (
        f"{STEPS:,} steps with logs, evaluations and checkpoints; what the process holds at step {BEGIN} and at the end"
    )
    record("memory", "Resident memory is flat", how, f"{grown:+.1f} MB")
    assert resident.tensors[STEPS] <= resident.tensors[BEGIN] + 5
