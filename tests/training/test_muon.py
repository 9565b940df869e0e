"""Muon: what it orthogonalises, what it leaves to AdamW, and that it resumes."""

import pytest
import torch
from torch import nn

from gpt_finetune import GPTForCausalLM
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.muon import Muon, MuonFactory, orthogonalise

PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)


@PRECISIONS
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_singular_values_come_near_one(shape, precision):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 5, precision))
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(40, 40), (40, 160), (160, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_a_hundred_times_apart_come_as_near(shape, dtype):
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = (u * torch.logspace(0, -2, 40) @ vh).to(dtype)
    found = orthogonalise(matrix[None], steps=5)
    values = torch.linalg.svdvals(found[0].float())
    assert found.dtype == dtype
    assert values.min() > 0.8
    assert values.max() < 1.2


@PRECISIONS
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_what_lacks_rank_stays_finite(rank, precision):
    matrix = torch.randn(1, 24, max(rank, 1)) @ torch.randn(1, max(rank, 1), 48) * (rank > 0)
    found = orthogonalise(matrix, 8, precision)
    values = torch.linalg.svdvals(found[0])
    assert found.isfinite().all()
    assert rank == 0 or values[:rank].min() > 0.8
    # a rounded matrix has full rank, and what rounding put there is made longer, too
    assert values[rank:].max() < (0.05 if precision == torch.float32 else 1.2)


@PRECISIONS
@pytest.mark.parametrize("shape", [(96, 96), (48, 192), (192, 48)])
def test_singular_values_a_thousand_times_apart(shape, precision):
    """In bfloat16 the polynomials without their margin of safety bring them to 50 and more."""
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(4, *shape), full_matrices=False)
    matrices = (u * torch.logspace(0, -3, min(shape))) @ vh
    for scale in (1e-4, 1.0, 1e6):
        found = orthogonalise(matrices * scale, 5, precision)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.4
        assert values.max() < 1.15
        assert nn.functional.cosine_similarity(found.flatten(1), (u @ vh).flatten(1)).min() > 0.97


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"precision": "float32"}, "float32"),
        ({"precision": "bfloat16", "muon_precision": "float32"}, "float32"),
        ({"precision": "float32", "muon_precision": "bfloat16"}, "bfloat16"),
        ({"precision": "float32", "trainer": {"bf16": True}}, "bfloat16"),
    ],
)
def test_precision_is_that_of_the_training_unless_named(settings, expected, make_config, tmp_path):
    config = TrainConfig(optimizer="muon", **settings)
    factory, given = custom_optimizer(config, training_arguments(config, tmp_path))
    optimizer = factory()(GPTForCausalLM(make_config("modern")), **given)
    assert optimizer.param_groups[0]["muon"]["precision"] == expected


def test_a_checkpoint_that_names_no_precision_goes_on_in_float32():
    weight = nn.Parameter(torch.randn(8, 8))
    old = Muon([weight], [], lr=0.1).state_dict()
    del old["param_groups"][0]["muon"]["precision"]
    muon, start = Muon([weight], [], lr=0.1, precision="bfloat16"), weight.detach().clone()
    muon.load_state_dict(old)
    weight.grad = torch.randn(8, 8)
    direction = orthogonalise(weight.grad[None].clone(), 5)[0]
    muon.step()
    torch.testing.assert_close(weight.detach(), start - 0.1 * 0.2 * 8**0.5 * direction)


def test_direction_is_that_of_the_polar_factor():
    matrix = torch.randn(1, 12, 20)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix, steps=5).flatten()
    assert nn.functional.cosine_similarity(found, (u @ vh).flatten(), dim=0) > 0.97


def test_a_batch_is_its_matrices_one_by_one():
    matrices = torch.randn(3, 8, 8)
    single = torch.cat([orthogonalise(matrix[None], steps=5) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices, steps=5), single)


def test_first_step_is_the_scaled_orthogonal_gradient():
    weight = nn.Parameter(torch.randn(8, 32))
    start = weight.detach().clone()
    weight.grad = torch.randn(8, 32)
    direction = orthogonalise(weight.grad[None].clone(), steps=5)[0]
    Muon([weight], [], lr=0.1, weight_decay=0.5).step()
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 32**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected)


def test_a_stack_of_experts_is_its_matrices_one_by_one():
    stacked = nn.Parameter(torch.randn(3, 8, 16))
    single = [nn.Parameter(matrix.detach().clone()) for matrix in stacked]
    muons = Muon([stacked], [], lr=0.1, weight_decay=0.5), Muon(single, [], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        stacked.grad = torch.randn(3, 8, 16)
        for matrix, gradient in zip(single, stacked.grad, strict=True):
            matrix.grad = gradient.clone()
        for muon in muons:
            muon.step()
    torch.testing.assert_close(stacked.detach(), torch.stack([matrix.detach() for matrix in single]))


def test_biases_and_sinks_of_experts_do_not_decay(make_config):
    model = GPTForCausalLM(make_config("gpt-oss"))
    names = {id(p): n for n, p in model.named_parameters()}
    matrices, tables, vectors = (
        {names[id(p)] for p in group["params"]} for group in MuonFactory()(model, lr=0.01).param_groups
    )
    assert {n.rpartition("experts.")[2] for n in matrices if "experts" in n} == {"gate_up_proj", "down_proj"}
    assert "model.layers.0.mlp.router.weight" in matrices
    assert tables == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {n for n in names.values() if n.endswith(("bias", "sinks"))} <= vectors
    model(torch.randint(2, 512, (2, 12)), labels=torch.randint(2, 512, (2, 12))).loss.backward()
    MuonFactory()(model, lr=0.01).step()


def test_the_rest_is_plain_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    muon = Muon(
        [nn.Parameter(torch.randn(4, 4))], [{"params": [ours], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.95)
    )
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(7)
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_parameters_are_sorted(make_config, name):
    model = GPTForCausalLM(make_config(name))
    optimizer = MuonFactory()(model, lr=0.01, weight_decay=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [({names[id(p)] for p in group["params"]}, group["weight_decay"]) for group in optimizer.param_groups]
    matrices, tables, vectors = groups
    assert all(n.endswith("_proj.weight") for n in matrices[0])
    assert len(matrices[0]) == 2 * (7 if name == "llama" else 6)
    expected = {"gpt2": {"embed_tokens", "embed_positions"}, "llama": {"embed_tokens", "lm_head"}}[name]
    assert {n.split(".")[-2] for n in tables[0]} == expected
    assert (matrices[1], tables[1], vectors[1]) == (0.1, 0.1, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    rates = [group["lr"] for group in MuonFactory()(model, lr=0.01, adamw_lr=0.03).param_groups]
    assert rates == [0.01, 0.03, 0.03]
    assert set().union(*(group for group, _ in groups)) == set(names.values())


def test_state_goes_through_a_checkpoint(make_config, tmp_path):
    def build():
        torch.manual_seed(0)
        model = GPTForCausalLM(make_config("modern"))
        return model, MuonFactory()(model, lr=0.01, weight_decay=0.1, fused=True)

    def train(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            x = torch.randint(2, 512, (2, 12))
            model(x, labels=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = build()
    train(whole, optimizer, range(6))
    half, optimizer = build()
    train(half, optimizer, range(3))
    torch.save({"model": half.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, optimizer = build()
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(again, optimizer, range(3, 6))
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"Muon takes matrices, got shapes \[\(3,\)\]"):
        Muon([nn.Parameter(torch.zeros(3))], [], lr=0.1)
