"""Short trainings of every head, by name: what `test_trajectories.py` runs in one process and on two ranks.

accelerate launch --config_file configs/accelerate/cpu-2.yaml tests/distributed/trajectories.py FOLDER
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

STEPS, ROWS, LENGTH = 20, 8, 12


def rows(head: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Return rows of one length whose labels are unequal in number, so that a mean over ranks would show."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for place in range(count):
        ids = torch.randint(2, 64, (LENGTH,), generator=draw)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if head == "sequence":
            row["labels"] = ids[0] % 3
        elif head == "answers":
            row |= {"start_positions": ids[0] % LENGTH, "end_positions": ids[1] % LENGTH}
        else:
            labels = ids % 3 if head == "tokens" else ids.clone()
            labels[: place % (LENGTH - 2)] = -100
            row["labels"] = labels
        made.append(row)
    return made


def models() -> Iterator[tuple[str, Any]]:
    """Make each model anew, the same on every rank."""
    from peft import LoraConfig, get_peft_model

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.model import GPTForQuestionAnswering, GPTForSequenceClassification, GPTForTokenClassification

    heads = {
        "causal": GPTForCausalLM,
        "causal with LoRA": GPTForCausalLM,
        "sequence": GPTForSequenceClassification,
        "tokens": GPTForTokenClassification,
        "answers": GPTForQuestionAnswering,
    }
    for name, head in heads.items():
        torch.manual_seed(0)
        labels = {} if head in (GPTForCausalLM, GPTForQuestionAnswering) else {"num_labels": 3}
        ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        model = head(preset("tiny", vocab_size=64, initializer_range=0.2, **ids, **labels))
        if "LoRA" in name:
            model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        yield name, model


def trajectories(folder: Path, batch_size: int, accumulation: int = 1) -> dict[str, list[float]]:
    """Train each model for `STEPS` steps of `ROWS` rows; return the losses that were logged.

    Args:
        folder: Nothing that matters goes there.
        batch_size: Rows a process in one forward pass.
        accumulation: Forward passes a step.
    """
    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.trainer import GPTTrainer

    found = {}
    for name, model in models():
        config = TrainConfig(
            max_steps=STEPS,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=1e-3,
            log_steps=1,
            precision="float32",
            threads=1,
            trainer={"disable_tqdm": True},
        )
        trainer = GPTTrainer(
            model=model,
            args=training_arguments(config, folder, evaluate=False),
            train_dataset=rows(name.split()[0], 5 * ROWS),
        )
        assert trainer.args.world_size * batch_size * accumulation == ROWS
        trainer.train()
        found[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return found


def write(folder: str) -> None:
    """Train on each rank; each writes its losses."""
    losses = trajectories(Path(folder), ROWS // int(os.environ["WORLD_SIZE"]))
    Path(folder, f"rank-{os.environ['RANK']}.json").write_text(json.dumps(losses))
