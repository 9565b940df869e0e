"""Mixture of experts: every way of computing it agrees, the balancing loss balances, accumulated batches are exact."""

from __future__ import annotations

import pytest
import torch

from gpt_finetune import GPTForCausalLM
from gpt_finetune.model.layers_gpt import GPTMixtureOfExperts, GPTRouter

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


def ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(2, 512, (rows, length))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("clamped", [True, False])
def test_experts_are_gated_mlps_chosen_and_mixed(make_config, implementation, biases, clamped):
    """Against the definition, token by token."""
    config = make_config("gpt-oss", mlp_bias=biases, swiglu_limit=0.5 if clamped else None)
    config._experts_implementation = implementation
    layer = GPTMixtureOfExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.25)  # larger ones cancel to less than float32 resolves
    x = torch.randn(2, 3, 32)
    expected = torch.zeros_like(x)
    experts, zero = layer.experts, torch.zeros(4, 1)
    up_bias, down_bias = (experts.gate_up_proj_bias, experts.down_proj_bias) if biases else (zero, zero)
    for place in ((b, t) for b in range(2) for t in range(3)):
        logits = torch.nn.functional.linear(x[place], layer.router.weight, layer.router.bias)
        best = logits.topk(2)
        for share, expert in zip(best.values.softmax(-1), best.indices, strict=True):
            both = x[place] @ experts.gate_up_proj[expert] + up_bias[expert]
            gate, up = both[::2], both[1::2]
            if clamped:
                gate, up = gate.clamp(max=0.5), up.clamp(-0.5, 0.5) + 1
            inner = gate * torch.sigmoid(1.702 * gate) * up
            expected[place] += share * (inner @ experts.down_proj[expert] + down_bias[expert])
    torch.testing.assert_close(layer(x), expected, **CLOSE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_implementations_have_the_same_gradients(make_model, implementation):
    model, x, gradients = make_model("gpt-oss"), ids(), []
    for name in ("eager", implementation):
        model.set_experts_implementation(name)
        model.zero_grad()
        model(x, labels=x, output_router_logits=True).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], **CLOSE)
        assert gradients[0][name].any(), name


def test_the_balancing_loss(make_model):
    """E x sum over experts of (share of choices x mean probability), as its paper defines it; padding left out."""
    model, x = make_model("gpt-oss", router_aux_loss_coef=0.5), ids()
    mask = torch.ones_like(x)
    mask[1, 8:] = 0
    labels = x.masked_fill(mask == 0, -100)
    outputs = model(x, attention_mask=mask, labels=labels, output_router_logits=True)
    logits = torch.stack(outputs.router_logits)[:, mask.flatten().bool()]  # (layers, N, E)
    chosen = torch.nn.functional.one_hot(logits.topk(2).indices, 4).sum(2).float()
    shares, probabilities = chosen.mean((0, 1)), logits.softmax(-1).mean((0, 1))
    torch.testing.assert_close(outputs.aux_loss, 4 * (shares * probabilities).sum(), **CLOSE)
    plain = model(x, attention_mask=mask, labels=labels)
    assert plain.aux_loss is None
    assert plain.router_logits is None
    torch.testing.assert_close(outputs.loss, plain.loss + 0.5 * outputs.aux_loss, **CLOSE)


def test_accumulated_passes_add_it_once(make_model):
    model, x = make_model("gpt-oss", router_aux_loss_coef=0.5, output_router_logits=True), ids(1)
    whole = model(x.expand(4, -1), labels=x.expand(4, -1)).loss
    part = model(x.expand(2, -1), labels=x.expand(2, -1), num_items_in_batch=torch.tensor(4 * 11)).loss
    torch.testing.assert_close(2 * part, whole, **CLOSE)


def test_checkpointing_keeps_the_gradients(make_model):
    model, x, gradients = make_model("gpt-oss", output_router_logits=True).train(), ids(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(x, labels=x, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], **CLOSE)


def test_the_balancing_loss_balances(make_config):
    """From a router that prefers one expert, training with the loss spreads the tokens; without, it does not."""
    spread = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        fields = {"router_aux_loss_coef": weight, "output_router_logits": True, "initializer_range": 0.2}
        model = GPTForCausalLM(make_config("gpt-oss", **fields))
        routers = [module for module in model.modules() if isinstance(module, GPTRouter)]
        with torch.no_grad():
            for router in routers:
                router.bias[0] = 4.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            x = ids(8)
            loss = model(x, labels=x).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits = torch.stack(model(ids(32), output_router_logits=True).router_logits)
        taken = torch.nn.functional.one_hot(logits.topk(2).indices, 4).sum(2).float().mean((0, 1))
        spread[weight] = float(taken.max())
    assert spread[1.0] < 0.65  # two of four experts: 0.5 is even, 1 is always the same one
    assert spread[0.0] > 0.8
