"""GPTTrainer: figures that do not depend on batch size, accumulation or what is shown meanwhile."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from gpt_finetune import GPTForCausalLM, GPTForQuestionAnswering, GPTForSequenceClassification
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import SampleConfig, TrainConfig, training_arguments
from gpt_finetune.training.callbacks import MetricsWriter, SampleWriter, read_json_lines
from gpt_finetune.training.throughput import matmul_ceiling, resolve_precision
from gpt_finetune.training.trainer import GPTTrainer


def rows(count: int, length: int = 12, *, uneven: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for i in range(count):
        ids = torch.randint(2, 512, (length,), generator=generator)
        labels = ids.clone()
        if uneven:
            labels[length - i % (length - 2) :] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(batch):
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


@pytest.fixture
def train(make_config, tmp_path):
    """Return a runner: train a fresh tiny model (always the same weights) and return its trainer."""

    def run(
        config: TrainConfig, *, data=None, evaluate=None, callbacks=(), resume=None, folder="run", z_loss=0.0, **fields
    ):
        torch.manual_seed(0)
        model = GPTForCausalLM(make_config("modern", **fields))
        trainer = GPTTrainer(
            model=model,
            args=training_arguments(config, tmp_path / folder),
            train_dataset=rows(32) if data is None else data,
            eval_dataset=evaluate,
            data_collator=collate,
            callbacks=list(callbacks),
            tokens_per_byte=0.25,
            eval_tokens_per_byte=0.5,
            z_loss=z_loss,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


FAST = {"max_steps": 6, "log_steps": 1, "precision": "float32", "learning_rate": 1e-2}


def test_accumulation_equals_the_big_batch(train):
    runs = {}
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        config = TrainConfig(**FAST, batch_size=batch_size, accumulation=accumulation)
        trainer = train(config, data=rows(64, uneven=True), folder=f"{batch_size}")
        runs[batch_size] = losses(trainer), [p.detach().clone() for p in trainer.model.parameters()]
    assert len(runs[8][0]) == 6
    for other in (4, 1):
        assert runs[other][0] == pytest.approx(runs[8][0], rel=1e-5)
        for a, b in zip(runs[other][1], runs[8][1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_gradient_of_accumulated_batch_equals_the_big_batch(train):
    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    caught = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        config = TrainConfig(
            **{**FAST, "max_steps": 1}, batch_size=batch_size, accumulation=accumulation, max_grad_norm=0
        )
        catch = Catch()
        train(config, data=rows(8, uneven=True), callbacks=[catch], folder=f"g{batch_size}")
        caught.append(catch.gradients)
    for name, gradient in caught[0].items():
        torch.testing.assert_close(caught[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_evaluation_is_token_weighted_whatever_the_batch_size(train):
    held_out = rows(7, uneven=True)
    found = []
    for eval_batch_size in (1, 2, 7):
        config = TrainConfig(**FAST, eval_batch_size=eval_batch_size)
        trainer = train(config, evaluate=held_out, folder=f"e{eval_batch_size}")
        found.append(trainer.final_figures())
    model = trainer.model.eval()
    nats = count = 0.0
    with torch.no_grad():
        for row in held_out:
            logits = model(row["input_ids"][None]).logits[0, :-1].double()
            target = row["labels"][1:]
            nats += nn.functional.cross_entropy(logits, target, reduction="sum", ignore_index=-100).item()
            count += (target != -100).sum().item()
    for figures in found:
        assert figures["eval_tokens"] == count
        assert figures["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
        assert figures["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
        assert figures["bits_per_byte"] == pytest.approx(nats / count / math.log(2) * 0.5, rel=1e-5)
    # the mean over batches, which Trainer reports, would be another number
    assert abs(sum(model(**collate([row])).loss.item() for row in held_out) / 7 - nats / count) > 1e-4


def test_questions_without_an_answer_do_not_count(make_config, tmp_path):
    generator = torch.Generator().manual_seed(3)
    data = []
    for i in range(8):  # answers in five of the first six rows and none after: uneven between the passes
        start = -100 if i in (2, 6, 7) else i
        ids = torch.randint(2, 512, (12,), generator=generator)
        answer = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(start if start < 0 else i + 2)}
        data.append({"input_ids": ids, **answer})
    found = []
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        torch.manual_seed(0)
        model = GPTForQuestionAnswering(make_config("modern"))
        config = TrainConfig(**{**FAST, "max_steps": 2}, batch_size=batch_size, accumulation=accumulation)
        args = training_arguments(config, tmp_path / f"{batch_size}")
        trainer = GPTTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=collate)
        trainer.train()
        found.append([*losses(trainer), trainer.evaluate()["eval_loss"]])
        assert "perplexity" not in trainer.state.log_history[0]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_matrices_decay_and_vectors_do_not(train):
    trainer = train(TrainConfig(**{**FAST, "max_steps": 1}))
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    assert {name for name, p in trainer.model.named_parameters() if p.ndim == 1}.isdisjoint(decaying)
    assert "model.layers.0.mlp.up_proj.weight" in decaying
    assert sorted(group["weight_decay"] for group in trainer.optimizer.param_groups) == [0.0, 0.1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.0, 2: 1.0, 6: 0.55, 9: 0.134}),
        ("wsd", {0: 0.1, 2: 1.0, 7: 1.0, 8: 1.0, 9: 0.55}),
        ("linear", {2: 1.0, 6: 0.5}),
        ("constant", {2: 1.0, 9: 1.0}),
    ],
)
def test_schedules(train, schedule, expected):
    trainer = train(TrainConfig(**{**FAST, "max_steps": 10}, schedule=schedule, warmup_steps=2))
    rates = [row["learning_rate"] / 1e-2 for row in trainer.state.log_history if "loss" in row]
    for step, rate in expected.items():
        assert rates[step] == pytest.approx(rate, abs=2e-3), (schedule, step)


def test_a_loss_that_is_not_a_number_stops_the_run(train):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.get_input_embeddings().weight.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="loss is nan at step 4"):
        train(TrainConfig(**FAST), callbacks=[Poison()])


def test_stopped_and_resumed_is_the_same_as_never_stopped(train, tmp_path):
    config = TrainConfig(**{**FAST, "max_steps": 10}, save_steps=5)
    whole = train(config, folder="whole", residual_dropout=0.1)
    again = train(config, folder="whole", residual_dropout=0.1, resume=str(tmp_path / "whole" / "checkpoint-5"))
    assert losses(again)[5:] == losses(whole)[5:]
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_samples_do_not_touch_the_training(train, tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    config = TrainConfig(**FAST, eval_steps=2)
    fields = {"residual_dropout": 0.1, "vocab_size": 512}
    plain = train(config, evaluate=rows(3), folder="plain", **fields)
    from rich.console import Console

    path = tmp_path / "samples.jsonl"
    samples = SampleConfig(prompts=["def ", "", "一"], max_new_tokens=5)
    writer = SampleWriter(samples, tokenizer, path, Console(file=(tmp_path / "shown").open("w")))
    sampled = train(config, evaluate=rows(3), callbacks=[writer], folder="sampled", **fields)
    assert losses(sampled) == losses(plain)
    written = read_json_lines(path)
    assert [row["step"] for row in written] == [2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert [row["prompt"] for row in written[:3]] == ["def ", "", "一"]


def test_metrics_file(train, tmp_path):
    path = tmp_path / "metrics.jsonl"
    train(TrainConfig(**FAST, eval_steps=3, save_steps=3), evaluate=rows(3), callbacks=[MetricsWriter(path)])
    written = read_json_lines(path)
    assert [(row["step"], row["split"]) for row in written] == [
        *((step, "train") for step in (1, 2, 3)),
        (3, "eval"),
        *((step, "train") for step in (4, 5, 6)),
        (6, "eval"),
    ]
    last = written[-2]
    assert [row["tokens"] for row in written] == [step * 8 * 12 for step in (1, 2, 3, 3, 4, 5, 6, 6)]
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / math.log(2) * 0.25)
    assert last["tokens_per_second"] > 0
    assert 0 < last["mfu"] < 1
    assert last["peak_memory_mb"] > 50

    # killed in the middle of a line, after the step to resume from: those lines come again, once
    with path.open("a") as file:
        file.write('{"step": 7, "split": "tra')
    resumed = tmp_path / "run" / "checkpoint-3"
    config = TrainConfig(**FAST, eval_steps=3, save_steps=3)
    train(config, evaluate=rows(3), callbacks=[MetricsWriter(path)], resume=str(resumed))
    again = read_json_lines(path)
    assert [(row["step"], row["split"]) for row in again] == [(row["step"], row["split"]) for row in written]
    assert again[:4] == written[:4]
    assert [row["tokens"] for row in again] == [row["tokens"] for row in written]
    assert all(a["elapsed_s"] <= b["elapsed_s"] for a, b in itertools.pairwise(again))


def test_json_lines_keep_line_separators_inside_a_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json_lines(path) == [{"text": "a\u2028b\u0085c"}]


def test_auto_precision_is_what_this_machine_is_faster_at():
    ratio = matmul_ceiling("cpu", torch.bfloat16) / matmul_ceiling("cpu", torch.float32)
    assert resolve_precision("auto", "cpu") == ("bfloat16" if ratio > 1.3 else "float32")
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"


def test_bfloat16_keeps_float32_weights(train):
    trainer = train(TrainConfig(**{**FAST, "precision": "bfloat16"}))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "train.batch_size = 0"),
        ({"max_steps": 0}, "train.max_steps = 0"),
        ({"learning_rate": -1.0}, "train.learning_rate"),
        ({"epochs": 0.0}, "train.epochs"),
        ({"embedding_learning_rate": 0.1}, "optimizer=adamw has one learning rate"),
        ({"muon_precision": "float32"}, "optimizer=adamw orthogonalises nothing"),
        ({"max_steps": 5, "warmup_steps": 6}, "warm-up is longer than max_steps=5"),
    ],
)
def test_bad_training_sections(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**fields)


def test_unknown_trainer_argument_is_named(tmp_path):
    with pytest.raises(InputError, match=r"train.trainer.label_smoothing = 0.1.*'label_smoothing_factor'"):
        training_arguments(TrainConfig(trainer={"label_smoothing": 0.1}), tmp_path)
    assert (
        training_arguments(TrainConfig(trainer={"label_smoothing_factor": 0.1}), tmp_path).label_smoothing_factor == 0.1
    )


def test_label_smoothing_and_z_loss_count_in_training_only(train):
    """And without whole logits: what Trainer's own label smoother would ask for."""
    held_out = rows(7, uneven=True)
    plain, smoothed, drawn = (
        train(TrainConfig(**FAST, **options), evaluate=held_out, folder=name, z_loss=options.get("z_loss", 0.0))
        for name, options in {
            "plain": {},
            "smoothed": {"trainer": {"label_smoothing_factor": 0.2}},
            "z": {"z_loss": 0.1},
        }.items()
    )
    model = plain.model
    for trainer, terms in ((plain, {}), (smoothed, {"label_smoothing": 0.2}), (drawn, {"z_loss": 0.1})):
        assert trainer._terms == terms
        assert trainer.label_smoother is None
    assert losses(smoothed)[-1] > losses(plain)[-1] + 0.02
    assert losses(drawn)[0] > losses(plain)[0] + 1  # logarithm of a sum over 512 tokens, squared
    logged = [{key for row in trainer.state.log_history for key in row} for trainer in (plain, drawn)]
    assert {"perplexity", "bits_per_byte"} == logged[0] - logged[1]  # of what is no longer the data's own loss
    for trainer in (smoothed, drawn):
        trainer.model.load_state_dict(model.state_dict())
        assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_an_evaluation_that_only_wants_the_loss_holds_no_logits(train, monkeypatch):
    trainer = train(TrainConfig(**{**FAST, "max_steps": 1}), evaluate=rows(5))
    loss = trainer.evaluate()["eval_loss"]
    monkeypatch.setattr(GPTForCausalLM, "logits", lambda *_: pytest.fail("whole logits"))
    assert trainer.evaluate()["eval_loss"] == loss


def test_a_z_loss_that_a_head_does_not_have_is_refused(make_config, tmp_path):
    model = GPTForSequenceClassification(make_config())
    arguments = training_arguments(TrainConfig(**FAST), tmp_path)
    with pytest.raises(InputError, match=r"train\.z_loss = 0\.1: GPTForSequenceClassification has no such term"):
        GPTTrainer(model=model, args=arguments, z_loss=0.1)


def test_an_attribute_that_would_not_save_is_refused_before_the_first_step(make_config, tmp_path):
    model = GPTForCausalLM(make_config())
    model.config.hidden_sizes = 3
    with pytest.raises(ValueError, match="hidden_sizes=3: there is no such field; did you mean hidden_size"):
        GPTTrainer(model=model, args=training_arguments(TrainConfig(**FAST), tmp_path))
