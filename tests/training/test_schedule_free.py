"""The schedule-free optimiser: what it evaluates and saves is its average, and a resumed run is the same to the bit."""

from __future__ import annotations

import pytest
import torch
from schedulefree import AdamWScheduleFree

from gpt_finetune import GPTForCausalLM
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.trainer import GPTTrainer

ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(2, 512, (16, 12), generator=torch.Generator().manual_seed(3))
]
SETTINGS = {"optimizer": "schedule_free", "schedule": "constant", "precision": "float32", "learning_rate": 0.01}


@pytest.fixture
def train(make_model, tmp_path):
    def run(name: str, resume: str | None = None, **fields):
        config = TrainConfig(
            **{**SETTINGS, "max_steps": 6, "warmup_steps": 2, "batch_size": 2, "log_steps": 1, **fields}
        )
        arguments = training_arguments(config, tmp_path / name, evaluate=False, disable_tqdm=True)
        torch.manual_seed(0)
        trainer = GPTTrainer(model=make_model("modern"), args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:4])
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return trainer

    return run


def weights(folder) -> dict[str, torch.Tensor]:
    return GPTForCausalLM.from_pretrained(folder).state_dict()


def test_what_is_saved_at_the_end_is_the_average(train, make_model, tmp_path):
    trainer = train("run", batch_size=16)  # all rows in each step: their order does not matter
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.save_model(str(tmp_path / "saved"))
    saved = weights(tmp_path / "saved")
    assert any(not torch.equal(saved[name], value) for name, value in trained.items())

    torch.manual_seed(0)
    model = make_model("modern").train()
    decaying = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim < 2]}]
    optimizer = AdamWScheduleFree(groups, lr=0.01, betas=(0.9, 0.95), warmup_steps=2, weight_decay=0.0)
    optimizer.train()
    batch = torch.stack([row["input_ids"] for row in ROWS])
    for _ in range(6):
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("evaluation", [None, 3], ids=["no evaluation", "evaluated where it is saved"])
def test_a_resumed_run_is_the_same_to_the_bit(train, tmp_path, evaluation):
    steps = {"save_steps": 3} | (
        {"trainer": {"eval_strategy": "steps", "eval_steps": evaluation}} if evaluation else {}
    )
    train("straight", **steps).save_model(str(tmp_path / "whole"))
    train("resumed", resume="straight/checkpoint-3", **steps).save_model(str(tmp_path / "again"))
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_rate_only_warms_up_once(train):
    trainer = train("run")
    assert {row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row} == {0.01}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_a_schedule_that_lowers_the_rate_is_refused(schedule):
    with pytest.raises(InputError, match=r"train\.schedule.*averages its weights.*schedule=constant"):
        TrainConfig(optimizer="schedule_free", schedule=schedule)
