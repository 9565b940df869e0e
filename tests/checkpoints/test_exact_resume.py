"""Six steps, and six of which the last ones are made by a run resumed in the middle: equal to the last bit."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import surviving
import torch
from torch.utils.data import IterableDataset

from gpt_finetune import GPTForCausalLM, preset

LENGTHS = [4 + 5 * i % 9 for i in range(20)]


def uneven(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {name: ids[:length] for name, ids in row.items()}
        for row, length in zip(surviving.rows(count), LENGTHS, strict=True)
    ]


def pad(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    stack = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": stack([row["input_ids"] for row in batch], batch_first=True),
        "labels": stack([row["labels"] for row in batch], batch_first=True, padding_value=-100),
    }


class Stream(IterableDataset):
    """Rows in an order that is drawn anew for each epoch, as a shuffled stream has it."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        made = surviving.rows(20)
        random.Random(self.epoch).shuffle(made)
        return iter(made)


def masked(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mask by chance, of all three libraries."""
    made = surviving.collate(batch)
    made["input_ids"] = made["input_ids"].masked_fill(torch.rand(made["input_ids"].shape) < 0.15, 2)
    made["input_ids"][random.randrange(len(batch)), np.random.randint(12)] = 3
    return made


def mixed():
    """Rows of two packed sources, one read twice and half a time more."""
    folder = Path(tempfile.mkdtemp())
    from gpt_finetune.data.packing import MixedDataset, PackedDataset

    parts = []
    for name, tokens in (("a", 100), ("b", 67)):
        np.random.default_rng(tokens).integers(2, 512, tokens, dtype=np.uint16).tofile(folder / name)
        parts.append(PackedDataset(folder / name, "uint16", tokens, 12))
    return MixedDataset(parts, [1.0, 2.5])


class Packed(torch.utils.data.Dataset):
    """Rows of two documents each, whose positions begin again."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        positions = torch.cat((torch.arange(5), torch.arange(7)))
        return surviving.rows(20)[index] | {"position_ids": positions}


def lora():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"))


def tiny(**fields):
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    ends = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    return GPTForCausalLM(preset("tiny", **small, **ends, residual_dropout=0.1, **fields))


def experts():
    return tiny(num_local_experts=4, num_experts_per_tok=2, norm_type="rmsnorm", gated_mlp=True, hidden_act="silu")


# Dropout, accumulation over an odd number of batches and a resume in the second epoch are part of each.
SETTINGS = {
    "plain": {},
    "one batch a step": {"accumulation": 1},
    "accumulation over epochs' ends": {"accumulation": 3},
    "in the first epoch": {"accumulation": 1, "batch_size": 2},
    "several epochs": {"max_steps": None, "epochs": 2.0},
    "two workers": {"workers": 2},
    "two workers, from the first epoch into the next": {"workers": 2},
    "rows of similar length": {
        "data": lambda: uneven(20),
        "collate": pad,
        "trainer": {"train_sampling_strategy": "group_by_length"},
    },
    "rows in their order": {"trainer": {"train_sampling_strategy": "sequential"}},
    "packed rows": {"data": Packed},
    "a stream in its second epoch": {"data": Stream},
    "a stream, a worker": {"data": Stream, "workers": 1},
    "a collator that draws random numbers": {"collate": masked},
    "a collator that draws random numbers, two workers": {"collate": masked, "workers": 2},
    "a collator that draws random numbers, a stream": {"collate": masked, "data": Stream},
    "mixed sources": {"data": mixed},
    "compiled": {"compile": True},
    "evaluations": {"evaluate": lambda: surviving.rows(8), "eval_steps": 2},
    "bfloat16": {"precision": "bfloat16"},
    "muon": {"optimizer": "muon"},
    "muon, bfloat16": {"optimizer": "muon", "precision": "bfloat16"},
    "schedule-free": {"optimizer": "schedule_free", "schedule": "constant", "warmup_steps": 2},
    "sgd": {"optimizer": "sgd"},
    "adafactor": {"optimizer": "adafactor"},
    "wsd": {"schedule": "wsd", "warmup_steps": 2, "decay_steps": 2},
    "linear": {"schedule": "linear", "warmup_steps": 2},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "no clipping": {"max_grad_norm": 0.0},
    "z-loss": {"z": 1e-3},
    "label smoothing": {"trainer": {"label_smoothing_factor": 0.1}},
    "NEFTune's noise": {"trainer": {"neftune_noise_alpha": 5.0}},
    "LoRA with dropout": {"model": lora},
    "experts": {"model": experts},
    "skipping bad steps": {"bad_steps": "skip"},
}


def weights(checkpoint):
    from safetensors.torch import load_file

    return {path.name: load_file(path) for path in checkpoint.glob("*.safetensors")}


GATE = (
    "plain",
    "a collator that draws random numbers",
    "two workers, from the first epoch into the next",
    "rows of similar length",
    "a stream in its second epoch",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in GATE else [pytest.mark.long]) for n in SETTINGS])
def test_a_resumed_run_is_the_one_that_was_never_stopped(name, tmp_path):
    made = {key: make() for key, make in SETTINGS[name].items() if key in ("data", "model", "evaluate")}
    fields = {**SETTINGS[name], **made}
    collate, z_loss = fields.pop("collate", surviving.collate), fields.pop("z", 0.0)
    make_model = SETTINGS[name].get("model")

    def train(folder, resume=False):
        again = {"model": make_model()} if make_model else {}
        trainer = surviving.make_trainer(folder, save_total_limit=9, **{**fields, **again})
        trainer.data_collator = collate
        trainer._terms = {"z_loss": z_loss} if z_loss else trainer._terms
        if resume:  # a new process has drawn other numbers so far
            for draw in (random.random, np.random.rand, lambda: torch.rand(3)):
                draw()
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = train(tmp_path / "whole")
    steps = whole.state.global_step
    middle = 2 if "first epoch" in name else steps - 2
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{middle}", tmp_path / "again" / f"checkpoint-{middle}")
    again = train(tmp_path / "again", resume=True)
    assert again.state.global_step == steps
    last = f"checkpoint-{steps}"
    found = weights(tmp_path / "again" / last)
    assert found
    assert surviving.same(found, weights(tmp_path / "whole" / last))
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        states = [surviving.load(tmp_path / run / last / file) for run in ("whole", "again")]
        assert surviving.same(*states), file
    losses = [[row["loss"] for row in run.state.log_history if "loss" in row] for run in (whole, again)]
    assert losses[0] == losses[1]
