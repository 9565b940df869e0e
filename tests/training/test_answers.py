"""Evaluation by generation: right figures, the same for any batch size and number of processes, nothing disturbed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from support import ROOT

from gpt_finetune import GPTForCausalLM
from gpt_finetune.errors import InputError
from gpt_finetune.generation import Prompt
from gpt_finetune.metrics import text_metrics
from gpt_finetune.training.answers import SHOWN, AnsweringTrainer
from gpt_finetune.training.arguments import AnswerConfig, TrainConfig, training_arguments
from gpt_finetune.training.callbacks import _SHOWN, MetricsWriter, read_json_lines
from gpt_finetune.training.trainer import GPTTrainer

PAIRS = [
    ("Moon?", "床前明月光"),
    ("def add", "(a, b): return a + b"),
    ("低头", "思故乡"),
    ("x =", " 1"),
    ("疑是", "霜"),
]
PROMPTS = [Prompt(f"{question}\n", reference, question) for question, reference in PAIRS]
FAST = {"log_steps": 1, "precision": "float32", "learning_rate": 1e-2, "batch_size": 5}


def collate(batch):
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def rows(tokenizer):
    """Return the prompts with their answers and the end token as training rows; the answers are learned."""
    made = []
    for prompt in PROMPTS:
        asked = tokenizer(prompt.text)["input_ids"]
        told = [*tokenizer(prompt.reference)["input_ids"], tokenizer.eos_token_id]
        spare = 40 - len(asked) - len(told)
        ids = torch.tensor(asked + told + [tokenizer.pad_token_id] * spare)
        labels = torch.tensor([-100] * len(asked) + told + [-100] * spare)
        made.append({"input_ids": ids, "labels": labels})
    return made


@pytest.fixture
def train(make_config, tokenizer, rows, tmp_path):
    """Return a runner: train a fresh tiny model on the answers and return its trainer."""

    def run(steps: int, *, folder="run", answering=None, resume=None, callbacks=(), prompts=PROMPTS, **more):
        torch.manual_seed(0)
        fields = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "residual_dropout": 0.1}
        model = GPTForCausalLM(make_config("modern", **fields))
        config = TrainConfig(**{**FAST, "max_steps": steps, **more})
        arguments = training_arguments(config, tmp_path / folder)
        arguments.eval_on_start = resume is None
        asked = {"prompts": prompts, "answering": answering or AnswerConfig(max_new_tokens=24, batch_size=2)}
        kind, asked = (GPTTrainer, {}) if answering is False else (AnsweringTrainer, asked)
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **asked,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_what_was_learned_is_answered(train, tmp_path):
    trainer = train(60, eval_steps=30)
    before, after = trainer.before(), trainer.final_figures()
    figures = {*SHOWN, "answer_tokens", "stop_rate"}
    assert before.keys() >= figures | {"eval_loss", "perplexity"}
    assert after.keys() >= figures | {"eval_loss", "perplexity"}
    assert (before["exact_match"], before["stop_rate"]) == (0, 0)
    assert (after["exact_match"], after["stop_rate"]) == (1, 1)
    assert after["chrf"] == pytest.approx(100)
    assert before["answer_tokens"] == 24 > after["answer_tokens"]
    assert before["eval_loss"] > after["eval_loss"]

    written = read_json_lines(tmp_path / "run" / "answers.jsonl")
    assert [row["step"] for row in written] == [0] * 5 + [30] * 5 + [60] * 5
    assert [row["prompt"] for row in written[:5]] == [question for question, _ in PAIRS]
    last = [(row["answer"], row["reference"], row["stopped"]) for row in written[-5:]]
    assert last == [(reference, reference, True) for _, reference in PAIRS]
    assert not any(row["stopped"] for row in written[:5])

    first = written[:5]
    by_hand = text_metrics([row["answer"] for row in first], [row["reference"] for row in first])
    assert {name: before[name] for name in SHOWN} == {name: by_hand[name] for name in SHOWN}
    assert before.keys() <= set(trainer.FINAL.values())


def test_answering_does_not_touch_the_training(train):
    plain = train(8, folder="plain", answering=False, eval_steps=2)
    answered = train(8, folder="answered", eval_steps=2)
    assert losses(answered) == losses(plain)  # with dropout: mode and random state came back
    again = [row["eval_loss"] for row in answered.state.log_history if "eval_loss" in row]
    assert again == [row["eval_loss"] for row in plain.state.log_history if "eval_loss" in row]
    assert answered.model.training == plain.model.training


def test_figures_do_not_depend_on_the_batch_size(train):
    found = []
    for batch_size in (1, 3, 16):
        trainer = train(10, folder=f"b{batch_size}", answering=AnswerConfig(batch_size=batch_size))
        found.append({name: trainer.final_figures()[name] for name in (*SHOWN, "answer_tokens", "stop_rate")})
    assert found[0] == found[1] == found[2]


def test_the_cache_is_used_where_training_has_none(train):
    trainer = train(2, gradient_checkpointing=True)
    assert trainer.model.config.use_cache is False
    lengths = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    trainer.model.train()
    answers = trainer.answer_prompts()
    hook.remove()
    assert trainer.model.training
    assert lengths.count(1) > len(lengths) // 2  # one token at a time
    assert answers == train(2, folder="plain").answer_prompts()


def test_a_resumed_run_keeps_its_beginning(train, tmp_path):
    whole = train(8, eval_steps=2, save_steps=4, callbacks=[MetricsWriter(tmp_path / "metrics.jsonl")])
    path = tmp_path / "run" / "answers.jsonl"
    written = path.read_bytes()
    assert [row["step"] for row in read_json_lines(path)] == [step for step in (0, 2, 4, 6, 8) for _ in PAIRS]
    with path.open("a") as file:
        file.write('{"step": 9, "prompt": "killed here')
    again = train(8, eval_steps=2, save_steps=4, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert path.read_bytes() == written
    assert again.before() == whole.before()
    assert again.final_figures()["chrf"] == whole.final_figures()["chrf"]
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "stop_rate" in row] == [0, 2, 4, 6, 8]
    assert rows[0]["split"] == "eval"


def test_which_prompts_are_asked(train, tmp_path, caplog):
    prompts = [Prompt(f"{i}\n", "1", str(i)) for i in range(10)] + [Prompt("床前明月光" * 90, "1", "long")]
    with caplog.at_level(logging.WARNING):
        trainer = train(1, answering=AnswerConfig(max_prompts=4, max_new_tokens=3, shown=2), prompts=prompts)
    assert [prompt.shown for prompt in trainer.prompts] == ["0", "2", "5", "7"]
    assert "1 of 11 held-out prompts leave no room for an answer" in caplog.text
    assert [row["prompt"] for row in read_json_lines(tmp_path / "run" / "answers.jsonl")] == ["0", "5"]  # not the first


@pytest.mark.parametrize("none", [{"prompts": []}, {"answering": AnswerConfig(max_prompts=0)}])
def test_without_prompts_it_is_any_trainer(train, tmp_path, none):
    trainer = train(1, **none)
    assert "chrf" not in trainer.final_figures()
    assert trainer.before()["eval_loss"] > 0
    assert not (tmp_path / "run" / "answers.jsonl").exists()


def test_the_console_line_says_it():
    assert _SHOWN.keys() >= {"eval_chrf", "eval_stop_rate"}


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size", "max_prompts", "shown"])
def test_bad_sections(name):
    with pytest.raises(InputError, match=f"answer.{name} = -1"):
        AnswerConfig(**{name: -1})


def test_a_model_of_peft_answers(train, tokenizer, rows, make_config, tmp_path):
    import peft

    torch.manual_seed(0)
    model = GPTForCausalLM(make_config("modern", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear", init_lora_weights=True)
    trainer = AnsweringTrainer(
        model=peft.get_peft_model(model, lora),
        args=training_arguments(TrainConfig(**{**FAST, "max_steps": 3}), tmp_path / "peft"),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
        prompts=PROMPTS,
        answering=AnswerConfig(max_new_tokens=5),
    )
    trainer.train()
    assert trainer.final_figures()["answer_tokens"] == 5


@pytest.mark.long
def test_two_processes_answer_as_one(tmp_path):
    script = tmp_path / "answers.py"
    script.write_text(
        textwrap.dedent("""
            import json, sys, torch
            from test_answers import PROMPTS, collate
            from gpt_finetune import GPTForCausalLM, preset
            from gpt_finetune.data.config import TokenizerConfig
            from gpt_finetune.data.tokenizer import train_tokenizer
            from gpt_finetune.training.answers import AnsweringTrainer
            from gpt_finetune.training.arguments import AnswerConfig, TrainConfig, training_arguments

            texts = ["床前明月光 def add(a, b): return x"] * 9
            tokenizer = train_tokenizer(iter(texts), TokenizerConfig(vocab_size=280))
            torch.manual_seed(0)
            ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
            model = GPTForCausalLM(preset("tiny", vocab_size=280, initializer_range=0.2, **ids))
            rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(5)]
            trainer = AnsweringTrainer(
                model=model,
                args=training_arguments(TrainConfig(max_steps=1, precision="float32"), sys.argv[1]),
                train_dataset=rows,
                eval_dataset=rows,
                data_collator=collate,
                processing_class=tokenizer,
                prompts=PROMPTS,
                answering=AnswerConfig(max_new_tokens=9),
            )
            found = trainer.evaluate()
            if trainer.is_world_process_zero():
                names = [*trainer.FINAL, "eval_answer_tokens"]
                print("FOUND", json.dumps({n: found[n] for n in names if n in found} | {"n": trainer.args.world_size}))
            if trainer.args.world_size > 1:
                torch.distributed.destroy_process_group()
        """),
        encoding="utf-8",
    )
    found = {}
    for count, config in ((1, "single.yaml"), (2, "cpu-2.yaml")):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        command += [
            "--config_file",
            str(ROOT / "configs" / "accelerate" / config),
            str(script),
            str(tmp_path / str(count)),
        ]
        paths = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'training'}"
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
        found[count] = json.loads(line.removeprefix("FOUND "))
        assert found[count].pop("n") == count
        assert len(found[count]) == 10
    assert found[2] == pytest.approx(found[1], rel=1e-5)
    assert read_json_lines(tmp_path / "2" / "answers.jsonl") == read_json_lines(tmp_path / "1" / "answers.jsonl")
