"""Training stopped and gone on with, through GPTTrainer: the same losses and weights as never stopped."""

from __future__ import annotations

import pytest
import torch
from adapting import adapted, logits

from gpt_finetune import GPTForCausalLM
from gpt_finetune.adaptation.config import METHODS
from gpt_finetune.adaptation.merging import load_adapters
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.trainer import GPTTrainer

NEW = [512, 513]


def rows():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 514, (32, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def collate(batch):
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


@pytest.fixture
def train(save, tmp_path):
    """Return a runner: a tiny model, grown by two tokens where the method learns them, and its trainer."""

    def run(method, resume=None, arguments=None, **fields):
        base = GPTForCausalLM.from_pretrained(save("llama", residual_dropout=0.1))
        torch.manual_seed(0)
        base.resize_token_embeddings(514)
        new = NEW if METHODS[method].learns_tokens else []
        model = adapted(base, method, new_rows=new, top_layers=1, **fields)
        settings = {"max_steps": 8, "save_steps": 4, "log_steps": 1, "precision": "float32", "learning_rate": 1e-2}
        config = TrainConfig(**{**settings, **(arguments or {})})
        args = training_arguments(config, tmp_path / "run")
        trainer = GPTTrainer(
            model=model,
            args=args,
            train_dataset=rows(),
            eval_dataset=rows()[:4],
            data_collator=collate,
            optimizer_cls_and_kwargs=custom_optimizer(config, args),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_the_same_as_never_stopped(method, train, tmp_path):
    whole = train(method)
    again = train(method, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert losses(again)[4:] == pytest.approx(losses(whole)[4:], abs=1e-6)
    assert losses(whole)[-1] < losses(whole)[0]
    parameters = dict(whole.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], atol=1e-6, rtol=0)
    figures = again.final_figures()
    assert figures["eval_loss"] > 0
    assert figures["tokens_per_second"] > 0


def test_muon_trains_adapters(train, tmp_path):
    whole = train("lora", arguments={"optimizer": "muon"})
    again = train("lora", arguments={"optimizer": "muon"}, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert losses(again)[4:] == pytest.approx(losses(whole)[4:], abs=1e-6)


def test_frozen_weights_in_bfloat16_go_on_the_same_and_are_not_saved(train, tmp_path):
    whole = train("lora", arguments={"precision": "bfloat16"}, bf16=True)
    again = train("lora", str(tmp_path / "run" / "checkpoint-4"), {"precision": "bfloat16"}, bf16=True)
    frozen = [p for n, p in again.model.named_parameters() if n.endswith("base_layer.weight") and ".layers." in n]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert losses(again)[4:] == losses(whole)[4:]
    assert losses(whole)[-1] < losses(whole)[0]
    assert again.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
    wide = train("lora", arguments={"precision": "bfloat16"})
    assert losses(whole) == pytest.approx(losses(wide), rel=4e-3)
    whole.save_model(tmp_path / "end")
    trained = sum(p.numel() for p in whole.model.parameters() if p.requires_grad)
    assert (tmp_path / "end" / "adapter_model.safetensors").stat().st_size < 4 * trained + 10_000


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_the_end_is_an_adapter_for_the_base(method, train, tmp_path):
    trainer = train(method)
    trainer.save_model(tmp_path / "end")
    assert not list(tmp_path.glob("end/model*.safetensors"))
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    ranks = 2 if method == "pissa" else 1
    assert (tmp_path / "end" / "adapter_model.safetensors").stat().st_size < ranks * 4 * trained + 10_000
    loaded = load_adapters(GPTForCausalLM.from_pretrained(tmp_path / "base"), {"end": tmp_path / "end"})
    ids = collate(rows()[:2])["input_ids"]
    torch.testing.assert_close(logits(loaded, ids), logits(trainer.model.eval(), ids), atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "top_layers"])
def test_gradient_checkpointing_trains_the_same(method, train):
    plain = train(method)
    checkpointed = train(method, arguments={"gradient_checkpointing": True})
    assert losses(checkpointed) == pytest.approx(losses(plain), abs=1e-5)


def test_decay_and_flops_under_adapters(train):
    trainer = train("dora")
    decaying = trainer.get_decay_parameter_names(trainer.model)
    assert any("lora_A" in name for name in decaying)
    assert not any("magnitude" in name or name.endswith("norm.weight") for name in decaying)
    # frozen weights have no gradient: well below the three forward passes of full training, above two
    full = train("full")
    assert 0.6 < trainer._flops_per_token / full._flops_per_token < 0.8
    assert trainer.state.total_flos > 0
