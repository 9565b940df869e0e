"""Steps that are not finite: said where they happen, or skipped without a trace in the optimiser."""

from __future__ import annotations

import math

import pytest
import surviving
import torch
from transformers import TrainerCallback

from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.callbacks import MetricsWriter, read_json_lines
from gpt_finetune.training.finite import StepWatch, first_bad, rows_of_step


class Poison(TrainerCallback):
    """Makes one gradient NaN, or a loss infinite, at chosen steps (counted from 1)."""

    def __init__(self, *steps: int, what: str = "gradient") -> None:
        self.steps, self.what, self.hooks = steps, what, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        while self.hooks:
            self.hooks.pop().remove()
        if state.global_step + 1 in self.steps:
            weight = model.model.layers[0].mlp.up_proj.weight
            if self.what == "gradient":
                self.hooks.append(weight.register_hook(lambda gradient: gradient * math.nan))
            else:
                self.hooks.append(model.register_forward_hook(self._infinite))

    @staticmethod
    def _infinite(module, inputs, output):
        output.loss = output.loss * math.inf
        return output


@pytest.mark.parametrize("deferred", [False, True], ids=["at-once", "a-step-later"])
def test_a_bad_gradient_is_named_with_its_step_and_rows(tmp_path, deferred):
    trainer = surviving.make_trainer(tmp_path / "run", callbacks=[Poison(4)], log_steps=10)
    trainer._deferred = deferred  # as on a GPU
    seen: list[list[int]] = []
    collate = trainer.data_collator
    numbered = [row | {"row": torch.tensor(i)} for i, row in enumerate(surviving.rows(20))]

    def watched(batch):
        seen.append([int(row["row"]) for row in batch])
        return collate([{key: row[key] for key in ("input_ids", "labels")} for row in batch])

    trainer.train_dataset, trainer.data_collator = numbered, watched
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    said = str(caught.value)
    assert "at step 4 (gradient norm nan)" in said
    # 20 rows, 5 batches an epoch, 2 a step: the fourth step is the first of the second epoch
    assert f"rows of the training data: {', '.join(str(row) for batch in seen[5:7] for row in batch)}." in said
    if not deferred:
        assert "first bad tensor: gradient of model.layers.0.mlp.up_proj.weight (2,048 of 2,048 values)" in said
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-3"]  # none of the spoilt model


def test_a_loss_that_is_infinite_stops_too(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is (inf|nan) at step 2 "):
        surviving.train(tmp_path / "run", callbacks=[Poison(2, what="loss")])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_leaves_the_optimizer_alone_and_is_counted(tmp_path, optimizer):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    trainer = surviving.train(
        tmp_path / "run",
        callbacks=[Poison(2, 3), writer],
        bad_steps="skip",
        log_steps=3,
        save_total_limit=9,
        optimizer=optimizer,
    )
    assert trainer.skipped_steps == 2
    states = [surviving.state_of(tmp_path / "run" / f"checkpoint-{step}") for step in (1, 2, 3, 4)]
    for after in states[1:3]:
        assert surviving.same(after["weights"], states[0]["weights"])
        assert surviving.same(after["optimizer.pt"]["state"], states[0]["optimizer.pt"]["state"])
    assert not surviving.same(states[3]["weights"], states[0]["weights"])
    rows = {row["step"]: row for row in read_json_lines(tmp_path / "metrics.jsonl")}
    assert rows[2]["skipped_steps"] == 1
    assert rows[3]["skipped_steps"] == rows[6]["skipped_steps"] == 2
    assert "loss" not in rows[2]  # it is not 0, there is none
    assert "loss" not in rows[3]
    assert all(math.isfinite(value) for row in rows.values() for value in row.values() if isinstance(value, float))
    resumed = surviving.train(tmp_path / "run", resume=True, bad_steps="skip", max_steps=7)
    assert resumed.skipped_steps == 2


def test_the_mean_loss_is_that_of_the_other_steps(tmp_path):
    each = surviving.train(tmp_path / "each", callbacks=[Poison(3)], bad_steps="skip", save_steps=None)
    mean = surviving.train(tmp_path / "mean", callbacks=[Poison(3)], bad_steps="skip", save_steps=None, log_steps=10)
    losses = {row["step"]: row["loss"] for row in each.state.log_history if "loss" in row}
    rows = {row["step"]: row for row in mean.state.log_history}
    assert 3 not in losses
    assert rows[3]["loss"] == pytest.approx(losses[2], rel=1e-5)  # steps 2 and 3, of which one counts


def test_the_figures_of_a_step_come_one_later():
    watch = StepWatch()
    assert watch.flush() is None
    watch.add(torch.tensor(1.0))
    watch.add(torch.tensor(2.0))
    assert watch.later(1, torch.tensor(0.5)) is None
    watch.add(torch.tensor(math.nan))
    assert watch.later(2, None) == (1, 3.0, 0.5)
    found = watch.flush()
    assert (found.step, found.finite, found.norm) == (2, False, 0.0)


def test_what_cannot_be_told_is_left_out():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    assert rows_of_step(torch.utils.data.DataLoader(Stream()), 1, 1) is None
    assert first_bad(torch.nn.Linear(2, 2)) == "none among parameters and gradients: the loss alone"


@pytest.mark.parametrize("name", ["push_to_hub", "hub_token"])
def test_no_token_enters_a_configuration(tmp_path, name):
    with pytest.raises(InputError, match=rf"train.trainer.{name}.*recipes/push.py") as caught:
        training_arguments(TrainConfig(trainer={name: "hf_abcdefghijkl"}), tmp_path)
    assert "abcdefghijkl" not in str(caught.value)
