"""One model on several processes: what is to be cut where, and that the pieces compute what the whole does."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import ARCHITECTURES
from transformers.distributed import DistributedConfig

from gpt_finetune import GPTForCausalLM, GPTForMaskedLM
from gpt_finetune.model import loss_gpt

# one key head cannot be cut in two
CUT = [name for name, fields in ARCHITECTURES.items() if fields.get("num_key_value_heads") != 1]


def matches(rule: str, names: list[str]) -> bool:
    return any(re.fullmatch(re.escape(rule).replace(r"\*", r"\d+"), name) for name in names)


def test_every_rule_names_a_part_of_some_architecture(make_model):
    """transformers passes over rules that match nothing, so a misspelt one would go unnoticed."""
    rules, names = set(), []
    for architecture in ARCHITECTURES:
        model = make_model(architecture)
        rules |= {*model.tp_plan, *model.ep_plan, *model.fsdp_plan, *model.pp_plan}
        names += [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    assert {"lm_head", "model.layers.*.self_attn.q_proj", "model.layers.*.mlp.experts.gate_up_proj"} <= rules
    assert [rule for rule in rules if not matches(rule, names)] == []


def test_all_large_weights_are_cut(make_model, architecture):
    """Norms, routers, positions and biases that follow a sum stay whole; experts are cut by the plan of experts."""
    model = make_model(architecture)
    rules = [*model.tp_plan, *model.ep_plan]
    whole = {n for n, _ in model.named_parameters() if not any(matches(r, [n, n.rpartition(".")[0]]) for r in rules)}
    assert all(re.search(r"norm|router|embed_positions", name) for name in whole)


def test_a_model_names_the_layers_that_it_has(make_model, architecture):
    """Accelerate shards a model layer by layer (FSDP2), and refuses a name that it does not find."""
    model = make_model(architecture)
    assert model._no_split_modules == {type(layer).__name__ for layer in model.model.layers}


@pytest.mark.parametrize("plan", ["tp_plan", "pp_plan", "fsdp_plan", "ep_plan"])
def test_a_masked_model_is_cut_as_a_causal_one(make_config, plan):
    causal = GPTForCausalLM(make_config("gpt-oss"))
    masked = GPTForMaskedLM(make_config("gpt-oss", is_causal=False))
    assert getattr(causal, plan) == getattr(masked, plan)


def test_a_pipeline_passes_on_what_the_next_part_takes(make_model):
    plan = make_model().pp_plan
    assert list(plan) == ["lm_head", "model.embed_tokens", "model.layers", "model.norm"]
    assert plan["model.layers"][1] == plan["model.norm"][0] == plan["lm_head"][0] == ["hidden_states"]


def compare_on_rank(rank: int, folder: str, x: torch.Tensor) -> None:
    """Compare logits, gradients and text of each saved model, cut in two, with those of the whole; then its training.

    In training the loss comes piece by piece. Where each rank has rows of its own (FSDP), one has fewer pieces.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    loss_gpt.rows_at_once = lambda *_: 5
    labels = x.clone()
    labels[1, :9] = -100
    items = (labels[:, 1:] != -100).sum()
    cuts = [(name, {"tp_size": 2}) for name in CUT]
    sharded = [(name, {"fsdp_size": 2}) for name in ("gpt2", "llama", "gpt-oss")]  # with a tied head and without
    for name, sizes in [*cuts, ("gpt-oss", {"tp_size": 2, "ep_size": 2}), *sharded]:
        whole = GPTForCausalLM.from_pretrained(f"{folder}/{name}").eval()
        cut = GPTForCausalLM.from_pretrained(f"{folder}/{name}", distributed_config=DistributedConfig(**sizes)).eval()
        outputs = [model(x, labels=x) for model in (whole, cut)]
        case = f"{name} {sizes}: "
        torch.testing.assert_close(*(o.logits for o in outputs), atol=1e-4, rtol=1e-4, msg=lambda m, c=case: c + m)
        for output in outputs:
            output.loss.backward()
        compare_gradients(whole, cut, case)
        case += "in training: "
        rows = slice(rank, rank + 1) if "fsdp_size" in sizes else slice(None)
        losses = []
        for model, mine in ((whole, slice(None)), (cut, rows)):
            model.zero_grad()
            output = model.train()(x[mine], labels=labels[mine], num_items_in_batch=items, output_router_logits=False)
            assert output.logits is None, case
            losses.append(output.loss)
        (losses[1] * (2 if "fsdp_size" in sizes else 1)).backward()  # FSDP takes the mean over ranks
        losses[0].backward()
        if "fsdp_size" in sizes:
            dist.all_reduce(losses[1].detach_())
        torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5, msg=lambda m, c=case: c + m)
        compare_gradients(whole, cut, case)
        for model in (whole, cut):
            model.eval()
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        texts = [model.generate(x, attention_mask=torch.ones_like(x), **options) for model in (whole, cut)]
        assert torch.equal(*texts), case
    dist.barrier()
    dist.destroy_process_group()


def compare_gradients(whole: GPTForCausalLM, cut: GPTForCausalLM, case: str) -> None:
    expected = dict(whole.named_parameters())
    for name, parameter in cut.named_parameters():
        gradient, full = parameter.grad, expected[name].grad
        if hasattr(gradient, "full_tensor"):
            gradient = gradient.full_tensor()
        if gradient.shape == full.shape:  # experts of this rank only are compared by their logits
            close = {"atol": 1e-5 + 1e-4 * float(full.abs().max()), "rtol": 1e-4}
            torch.testing.assert_close(gradient, full, **close, msg=lambda m, n=name: case + n + m)


@pytest.mark.long
def test_two_processes_compute_what_one_does(make_model, tmp_path):
    """Heads, attention sinks, MLPs, experts and the vocabulary are cut in two; then layers are gathered as needed."""
    for name in CUT:
        make_model(name).save_pretrained(tmp_path / name)
    mp.spawn(compare_on_rank, args=(str(tmp_path), torch.randint(2, 512, (2, 12))), nprocs=2)
