"""Norms, activations and casts of weights computed again: the same gradients to the last bit, and less kept."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from support import kept_bytes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_finetune.model.layers_gpt import Gate
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.recompute import recomputed
from gpt_finetune.training.trainer import GPTTrainer

IDS = torch.arange(2, 50).view(4, 12)


def stepped(model: Any, enabled: bool, bf16: bool = False, passes: int = 1) -> list[torch.Tensor]:
    """Return the loss and all gradients."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    for _ in range(passes):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), recomputed(enabled, least=0):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_gradients_are_the_same_to_the_last_bit(architecture, bf16, make_model):
    model = make_model(architecture, attention_dropout=0.1, residual_dropout=0.1)
    for ours, ever in zip(stepped(model, True, bf16, 2), stepped(model, False, bf16, 2), strict=True):
        assert torch.equal(ours, ever)


@pytest.mark.parametrize(("architecture", "share"), [("gpt2", 0.85), ("llama", 0.8), ("gemma3", 0.85), ("gpt1", 0.9)])
def test_less_is_kept(architecture, share, make_model, monkeypatch):
    model, given = make_model(architecture).train(), {"input_ids": IDS, "labels": IDS}
    assert kept_bytes(model, True, monkeypatch, **given) < share * kept_bytes(model, False, monkeypatch, **given)


def test_nothing_is_kept_twice(architecture, make_model, monkeypatch):
    model, given = make_model(architecture).train(), {"input_ids": IDS, "labels": IDS}
    assert kept_bytes(model, True, monkeypatch, **given) <= kept_bytes(model, False, monkeypatch, **given)


class Activations(TorchDispatchMode):
    """Counts activations computed."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.silu.default, torch.ops.aten.gelu.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("architecture", "limit"), [("llama", None), ("gemma3", None), ("llama", 2.0)])
def test_a_gate_and_its_activation_are_computed_again_together(architecture, limit, make_model):
    model = make_model(architecture, swiglu_limit=limit).train()
    layers = sum(isinstance(module, Gate) for module in model.modules())
    for enabled, times in ((False, 1), (True, 2)):
        with Activations() as activations:
            with recomputed(enabled, least=0):
                loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
        assert activations.count == times * layers > 0


class Copies(TorchDispatchMode):
    """Remembers weakly what is cast to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
            self.made.append(weakref.ref(found.untyped_storage()))
        return found


def bfloat16_pass(model: Any, **options: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16), recomputed(**{"least": 0} | options):
        return model(torch.ones(2, 8)).float().sum()


@pytest.mark.parametrize(("enabled", "least", "kept"), [(True, 0, 0), (True, 129, 1), (False, 0, 1)])
def test_copies_of_weights_are_not_kept(enabled, least, kept):
    """A matrix of 64 weights is 128 bytes in bfloat16; the first one is not asked for: nothing is before it."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU())
    with Copies() as copies:
        loss = bfloat16_pass(model, enabled=enabled, least=least)
    alive = [storage() for storage in copies.made]
    assert sum(storage is not None and storage.nbytes() == 128 for storage in alive) == kept
    del alive
    loss.backward()
    found = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    bfloat16_pass(model, enabled=False).backward()
    assert all(map(torch.equal, found, [p.grad for p in model.parameters()]))


@pytest.mark.parametrize("once", [True, False])
def test_copies_of_outputs_are_not_kept(once):
    """Three products take a norm's output, (4, 8), or the one copy of it, 64 bytes in bfloat16."""
    norm, layers = nn.LayerNorm(8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    x, kept, slopes = torch.randn(4, 8), [], []
    for enabled in (True, False):
        given = x.clone().requires_grad_()
        with Copies() as copies, torch.autocast("cpu", torch.bfloat16), recomputed(enabled, least=0):
            normed = norm(given).bfloat16() if once else norm(given)
            loss = sum(layer(normed).float().square().sum() for layer in layers)
            del normed
        alive = [storage() for storage in copies.made]
        kept.append(sum(storage is not None and storage.nbytes() == 64 for storage in alive))
        del alive
        slopes.append(torch.autograd.grad(loss, [given, *norm.parameters(), *layers.parameters()]))
    assert kept == [0, 1 if once else 3]
    assert all(map(torch.equal, *slopes))


def test_a_weight_that_was_overwritten_is_an_error_too():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    loss = bfloat16_pass(model)
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match=r"a tensor \(8, 8\) was modified"):
        loss.backward()


def test_a_graph_can_be_gone_through_twice(make_model):
    model = make_model("llama").train()
    with recomputed(least=0):
        loss = model(input_ids=IDS, labels=IDS, skip_logits=False).logits.square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, list(model.parameters()))))


def test_what_was_overwritten_is_an_error_not_a_wrong_gradient():
    act, linear = nn.GELU(), nn.Linear(4, 4)
    with recomputed(least=0):
        inner = linear(torch.ones(2, 4))
        output = linear(act(inner))
    with torch.no_grad():
        inner.add_(1)
    with pytest.raises(RuntimeError, match="an input of GELU"):
        output.sum().backward()


@pytest.mark.parametrize("enabled", [True, False])
def test_so_it_is_of_what_is_kept(enabled):
    x = torch.ones(2, 4, requires_grad=True)
    with recomputed(enabled, least=0):
        inner = x * 2
        output = inner * inner
    with torch.no_grad():
        inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_an_output_that_is_changed_is_kept_as_it_is():
    linear = nn.Linear(4, 4)
    slopes = []
    for enabled in (True, False):
        x = torch.ones(2, 4, requires_grad=True)
        with recomputed(enabled, least=0):
            inner = nn.functional.linear(x, torch.eye(4))
            output = linear(nn.functional.dropout(nn.GELU()(inner), 0.0).add_(1))
        linear.zero_grad()
        output.square().sum().backward()
        slopes.append(linear.weight.grad.clone())
    assert torch.equal(*slopes)


def test_an_address_that_is_used_again_is_not_mistaken():
    norm, linear = nn.LayerNorm(256), nn.Linear(256, 256)
    x = torch.randn(64, 256, requires_grad=True)
    with recomputed(least=0):
        place = norm(x).data_ptr()  # let go at once
        others = [(x * factor) for factor in range(1, 9)]
        output = sum(linear(other) for other in others)
    output.sum().backward()
    wanted = sum(other.detach().sum(0) for other in others).expand(256, 256)
    torch.testing.assert_close(linear.weight.grad, wanted, rtol=1e-4, atol=1e-4)
    assert place  # most often one of the others has it; then it must not be taken for the norm's


@pytest.mark.parametrize(("least", "again"), [(0, True), (32, True), (33, False)])
def test_small_outputs_are_kept(least, again, monkeypatch):
    linear, act, computed = nn.Linear(4, 4), nn.GELU(), []
    with recomputed(least=least):
        output = nn.functional.linear(act(linear(torch.ones(2, 4))), linear.weight)
    forward = act.forward
    monkeypatch.setattr(act, "forward", lambda given: computed.append(given) or forward(given))
    output.sum().backward()
    assert len(computed) == again


def test_hooks_go_with_the_pass():
    before = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(ZeroDivisionError), recomputed(least=0):
        assert len(torch.nn.modules.module._global_forward_hooks) == before + 1
        raise ZeroDivisionError
    assert len(torch.nn.modules.module._global_forward_hooks) == before


@pytest.mark.parametrize(
    ("fields", "used"),
    [({}, True), ({"recompute": False}, False), ({"gradient_checkpointing": True}, False)],
    ids=["default", "off", "checkpointing"],
)
def test_the_trainer_uses_it(fields, used, make_model, tmp_path, monkeypatch):
    from gpt_finetune.training import trainer

    seen = []
    monkeypatch.setattr(trainer, "recomputed", lambda enabled: seen.append(enabled) or recomputed(enabled))
    config = TrainConfig(max_steps=2, batch_size=4, warmup_steps=0, log_steps=1, precision="float32", **fields)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    GPTTrainer(
        model=make_model("llama"),
        args=training_arguments(config, tmp_path, disable_tqdm=True),
        train_dataset=rows,
    ).train()
    assert seen == [used] * 2
