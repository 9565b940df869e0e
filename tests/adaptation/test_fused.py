"""LoRA's layers in one operation: what PEFT's own layer computes, forward and backward, and PEFT's where it must be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapting import IDS, adapted, fit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from gpt_finetune.adaptation.fused import FusedLoraLinear, fuse
from gpt_finetune.training.recompute import recomputed

FUSED = "_AdaptedProductBackward"


def a_layer(bias: bool = True, base_dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return a linear layer 24 -> 40 with an adapter that adds something, fused."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias))
    told = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["0"], **options))
    layer = told.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    layer.base_layer.to(base_dtype)
    fuse(told)
    return layer


def as_peft_has_it(layer: Any) -> Any:
    theirs = copy.deepcopy(layer)
    theirs.__class__ = Linear
    return theirs


def derived(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, and the slopes of the input and of what is trained."""
    x = x.clone().requires_grad_(True)
    output = layer(x)
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    slopes = [p.grad for p in layer.parameters() if p.requires_grad]
    assert len(slopes) == 2
    return [output.detach(), x.grad, *slopes]


@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24), (0, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_slopes_are_those_of_peft(bias, shape):
    layer, x = a_layer(bias), torch.randn(shape)
    assert type(layer(x.requires_grad_(True)).grad_fn).__name__ == FUSED
    for ours, theirs in zip(derived(layer, x.detach()), derived(as_peft_has_it(layer), x.detach()), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_slopes_are_right_by_finite_differences():
    layer = a_layer().double()
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *trained))


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16], ids=["wide base", "narrow base"])
def test_under_autocast_it_is_as_close_to_float32_as_peft_is(base_dtype):
    layer, x = a_layer(base_dtype=base_dtype), torch.randn(64, 24)
    exact = as_peft_has_it(layer)
    exact.base_layer.float()
    wanted = derived(exact, x)
    layer.cast_input_dtype_enabled = False  # as frozen weights in bfloat16 have it
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = derived(layer, x), derived(as_peft_has_it(layer), x)
    for ours, peft, right in zip(found, theirs, wanted, strict=True):
        assert ours.dtype == peft.dtype
        apart, theirs_apart = ((each.float() - right).norm() / right.norm() for each in (ours, peft))
        assert apart < max(1.1 * theirs_apart, 2e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "eva"])
def test_every_linear_layer_that_is_adapted_takes_the_quick_way(method, architecture, make_model, monkeypatch):
    model = adapted(make_model(architecture), method)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    seen = []
    monkeypatch.setattr(Linear, "forward", lambda *_: pytest.fail("PEFT's own way"))
    for layer in layers:
        assert type(layer) is FusedLoraLinear
        layer.register_forward_hook(lambda *_: seen.append(1))
    losses = fit(model)
    assert losses[-1] < losses[0]
    assert len(seen) == 6 * len(layers) > 0


def test_a_model_trains_as_with_pefts_layers(make_model):
    ours = adapted(make_model("llama"))
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if type(module) is FusedLoraLinear:
            module.__class__ = Linear
    torch.testing.assert_close(torch.tensor(fit(ours)), torch.tensor(fit(theirs)), rtol=1e-5, atol=1e-5)


def test_slopes_stay_where_norms_and_gates_are_computed_again(make_model):
    model, found = adapted(make_model("llama")).train(), []
    for enabled in (True, False):
        with recomputed(enabled, least=0):
            loss = model(input_ids=IDS, labels=IDS).loss
        found.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    assert all(map(torch.equal, *found))


def _two(layer: Any) -> None:
    layer.update_layer("second", 4, lora_alpha=4, config=LoraConfig(r=4))
    layer.set_adapter(["default", "second"])


def _replaced(layer: Any) -> None:
    layer.lora_A["default"].forward = lambda x: x[..., :4]


def _trained_base(layer: Any) -> None:
    layer.base_layer.bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        pytest.param({"lora_dropout": 0.5}, None, id="dropout"),
        pytest.param({"use_dora": True}, None, id="dora"),
        pytest.param({"lora_bias": True}, None, id="bias"),
        pytest.param({}, _two, id="two adapters"),
        pytest.param({}, _trained_base, id="trained base"),
        pytest.param({}, lambda layer: layer.merge(), id="merged"),
        pytest.param({}, lambda layer: layer.enable_adapters(False), id="disabled"),
        pytest.param({}, lambda layer: layer.lora_A.to(torch.float64), id="two precisions"),
        pytest.param({}, lambda layer: layer.base_layer.register_forward_hook(lambda *_: None), id="watched"),
        pytest.param(
            {}, lambda layer: setattr(layer.lora_A["default"], "forward", lambda x: x[..., :4]), id="replaced"
        ),
    ],
)
def test_what_it_has_not_is_computed_by_peft(options, change):
    layer = a_layer(**options).train()
    if change is not None:
        change(layer)
    theirs, x = as_peft_has_it(layer), torch.randn(3, 24)
    outputs = []
    for each in (layer, theirs):
        torch.manual_seed(1)
        try:
            outputs.append(each(x))
        except RuntimeError as error:
            outputs.append(str(error))
    assert outputs[0] == outputs[1] if isinstance(outputs[1], str) else torch.equal(*outputs)
    assert FUSED not in str(getattr(outputs[0], "grad_fn", ""))


def test_dropout_counts_in_training_only():
    layer = a_layer(lora_dropout=0.5).eval()
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), as_peft_has_it(layer)(x), rtol=1e-5, atol=1e-5)
    assert type(layer(x).grad_fn).__name__ == FUSED


def test_it_keeps_its_input_and_the_narrow_product_only():
    layer, x = a_layer(), torch.randn(64, 24, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda given: kept.append(given) or given, lambda given: given):
        layer(x)
    weights = {p.data_ptr() for p in layer.parameters()}
    assert sorted(given.numel() for given in kept if given.data_ptr() not in weights) == [64 * 4, 64 * 24]


def test_compiled_it_is_the_same():
    layer, x = a_layer(), torch.randn(3, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(derived(compiled, x), derived(as_peft_has_it(layer), x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
