"""Short trainings of every head, by name: what `test_ddp.py` runs in one process and on two ranks.

accelerate launch --config_file configs/accelerate/cpu-2.yaml tests/distributed/trajectories.py FOLDER
"""

from __future__ import annotations

import copy
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
        ids = torch.randint(2, 64, (3, LENGTH) if head == "choices" else (LENGTH,), generator=draw)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if head in ("sequence", "choices"):
            row["labels"] = ids.flatten()[0] % 3
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

    from gpt_finetune import GPTForCausalLM, model, preset

    common = {"vocab_size": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    heads: dict[str, tuple[Any, dict[str, Any]]] = {
        "causal": (GPTForCausalLM, {}),
        "masked": (model.GPTForMaskedLM, {"is_causal": False}),
        "sequence": (model.GPTForSequenceClassification, {"num_labels": 3}),
        "tokens": (model.GPTForTokenClassification, {"num_labels": 3}),
        "answers": (model.GPTForQuestionAnswering, {}),
        "choices": (model.GPTForMultipleChoice, {}),
        "pair": (_pair, {}),
    }
    for name, (head, fields) in heads.items():
        torch.manual_seed(0)
        yield name, head(preset("tiny", **common, **fields))
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    yield "causal with LoRA", get_peft_model(GPTForCausalLM(preset("tiny", **common)), lora)


def _pair(config: Any) -> Any:
    """Make an encoder-decoder of two GPTs, as recipes/seq2seq.py trains it."""
    from transformers import EncoderDecoderModel

    from gpt_finetune import GPTForCausalLM, GPTModel

    halves = [copy.deepcopy(config) for _ in range(2)]
    halves[0].is_causal, halves[1].add_cross_attention = False, True
    made = EncoderDecoderModel(encoder=GPTModel(halves[0]), decoder=GPTForCausalLM(halves[1]))
    made.config.pad_token_id, made.config.decoder_start_token_id = config.pad_token_id, config.bos_token_id
    return made


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
