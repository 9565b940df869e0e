"""Several data sets in one evaluation: each its own mean over tokens and its own bytes."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback

from gpt_finetune import GPTForCausalLM
from gpt_finetune.data.prepare import Watched
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.callbacks import MetricsWriter, Progress, read_json_lines
from gpt_finetune.training.trainer import GPTTrainer


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return rows whose numbers of labels differ, so that a mean over batches is none over tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(2, 512, (12,), generator=generator)
        labels = ids.clone()
        labels[12 - i % 10 :] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(batch):
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


class Counter(TrainerCallback):
    evaluations = 0

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluations += 1


OWN, OTHER, THIRD = rows(7, 1), rows(5, 2), rows(9, 3)


@pytest.fixture
def make_trainer(make_config, tmp_path):
    def make(eval_dataset, ratio=0.5, workers=0, **more):
        torch.manual_seed(0)
        config = TrainConfig(
            max_steps=2, eval_steps=1, log_steps=1, precision="float32", eval_batch_size=2, workers=workers
        )
        return GPTTrainer(
            model=GPTForCausalLM(make_config("modern")),
            args=training_arguments(config, tmp_path / "run"),
            train_dataset=rows(16, 4),
            eval_dataset=eval_dataset,
            data_collator=collate,
            eval_tokens_per_byte=ratio,
            **more,
        )

    return make


def mean_loss(model, data) -> float:
    """Return the mean over all targets, computed row by row."""
    nats = count = 0.0
    with torch.no_grad():
        for row in data:
            logits, target = model(row["input_ids"][None]).logits[0, :-1].double(), row["labels"][1:]
            nats += torch.nn.functional.cross_entropy(logits, target, reduction="sum", ignore_index=-100).item()
            count += int((target != -100).sum())
    return nats / count


@pytest.mark.parametrize("workers", [0, 1])
def test_watched_sets_share_an_evaluation(make_trainer, tmp_path, workers):
    watched = {"other": Watched(OTHER, 0.25), "third": Watched(THIRD, 0.125)}
    path = tmp_path / "metrics.jsonl"
    counter = Counter()
    trainer = make_trainer(OWN, workers=workers, watched=watched, callbacks=[MetricsWriter(path), counter])
    trainer.args.eval_on_start = True
    start = mean_loss(trainer.model.eval(), OTHER)
    trainer.train()
    assert [row["step"] for row in read_json_lines(path) if row["split"] == "eval"] == [0, 1, 2]
    assert counter.evaluations == 3  # one evaluation, however many data sets: no callback sees it twice
    model = trainer.model.eval()
    found = trainer.evaluate()
    for name, data, ratio in (("", OWN, 0.5), ("other_", OTHER, 0.25), ("third_", THIRD, 0.125)):
        expected = mean_loss(model, data)
        assert found[f"eval_{name}loss"] == pytest.approx(expected, rel=1e-5)
        assert found[f"eval_{name}perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
        assert found[f"eval_{name}bits_per_byte"] == pytest.approx(expected / math.log(2) * ratio, rel=1e-5)
    assert found["eval_tokens"] == sum(int((row["labels"][1:] != -100).sum()) for row in OWN)
    told = trainer.forgetting()
    assert told.keys() == {"other", "third"}
    assert told["other"]["before"]["eval_loss"] == pytest.approx(start, rel=1e-5)
    assert told["other"]["after"]["eval_loss"] == found["eval_other_loss"]
    assert told["third"]["after"]["bits_per_byte"] == found["eval_third_bits_per_byte"]
    assert trainer.eval_dataset is OWN
    assert "other" not in str(trainer.final_figures().keys())


def test_a_dict_of_evaluation_sets_as_in_transformers(make_trainer, tmp_path):
    path = tmp_path / "metrics.jsonl"
    ratios = {"a": 0.5, "b": 0.25}
    trainer = make_trainer({"a": OWN, "b": OTHER}, ratios, callbacks=[MetricsWriter(path)])
    trainer.train()
    found, model = trainer.evaluate(), trainer.model.eval()
    for name, data in (("a", OWN), ("b", OTHER)):
        expected = mean_loss(model, data)
        assert found[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-5)
        assert found[f"eval_{name}_bits_per_byte"] == pytest.approx(expected / math.log(2) * ratios[name], rel=1e-5)
    written = [row for row in read_json_lines(path) if row["split"] == "eval"]
    assert [(row["step"], *(key for key in row if key.endswith("_loss"))) for row in written[:4]] == [
        (step, f"{name}_loss") for step in (1, 2) for name in "ab"
    ]


def test_each_data_set_has_a_bar_of_its_own(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, **kwargs):
            self.total, self.seen = total, 0
            bars.append(self)

        def update(self, amount):
            self.seen += amount

        def close(self):
            pass

    monkeypatch.setattr("transformers.trainer_callback.tqdm", Bar)
    state = type("State", (), {"is_world_process_zero": True})
    progress = Progress()
    for loader in ([1, 2, 3], [1, 2]):
        for _ in loader:
            progress.on_prediction_step(None, state, None, eval_dataloader=loader)
    assert [(bar.total, bar.seen) for bar in bars] == [(3, 3), (2, 2)]


def test_the_console_line_names_each_data_set(capsys):
    state = type("State", (), {"is_world_process_zero": True, "global_step": 3, "max_steps": 9})
    logs = {"eval_loss": 2.0, "eval_bits_per_byte": 1.5, "eval_python_loss": 3.0, "eval_python_bits_per_byte": 2.25}
    Progress().on_log(None, state, None, logs={**logs, "eval_chrf": 40.0, "eval_stop_rate": 0.5})
    line = "step 3/9  eval loss 2.0000  bits/byte 1.5000  chrF 40.0  stopped 50%  python 2.2500\n"
    assert capsys.readouterr().err == line
