"""What engines that spread a model over processes need of us, and what they cannot do."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from gpt_finetune.adaptation.memory import describe
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import SampleConfig, TrainConfig, training_arguments
from gpt_finetune.training.callbacks import SampleWriter
from gpt_finetune.training.muon import is_vector


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_that_accelerate_would_pass_over_is_refused(tmp_path, monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator, so it is not passed over")
    with pytest.raises(InputError, match=f"{engine}.*cpu-2.yaml"):
        training_arguments(TrainConfig(), tmp_path)
    if engine == "FSDP":  # which saying that there is a GPU does not change
        with pytest.raises(InputError, match=f"{engine}.*cpu-2.yaml"):
            training_arguments(TrainConfig(precision="float32", trainer={"use_cpu": False}), tmp_path)


def spread(parameter: nn.Parameter) -> nn.Parameter:
    """Return what ZeRO-3 leaves of a parameter: nothing in it, and what it was beside it."""
    left = nn.Parameter(torch.empty(0))
    left.ds_id, left.ds_shape, left.ds_numel = 0, parameter.shape, parameter.numel()
    return left


def test_zero_3_leaves_matrices_matrices():
    assert not is_vector("weight", spread(nn.Parameter(torch.ones(3, 2))))
    assert is_vector("weight", spread(nn.Parameter(torch.ones(3))))


def test_zero_3_leaves_parameters_counted(make_model):
    model = make_model()
    counted = describe(model, 1, 8)
    left = {id(parameter): spread(parameter) for parameter in model.parameters()}  # a tied one once
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, left[id(parameter)])
    assert describe(model, 1, 8).trainable == counted.trainable > 0


def test_a_model_that_processes_share_is_not_sampled_by_one(tmp_path, caplog):
    console = Console(file=io.StringIO())
    writer = SampleWriter(SampleConfig(prompts=["a"]), None, tmp_path / "samples.jsonl", console)
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0
    with caplog.at_level("WARNING"):
        writer.on_evaluate(None, SimpleNamespace(is_world_process_zero=True, global_step=3), None, model=model)
    assert "no samples" in caplog.text
    assert not (tmp_path / "samples.jsonl").exists()
