"""Adapters into weights: the same logits, with new tokens, several adapters, and what cannot be merged."""

from __future__ import annotations

import pytest
import torch
from adapting import IDS, LEARNS_TOKENS, MERGING, adapted, fit, logits
from torch import nn
from transformers import AutoModelForCausalLM

from gpt_finetune import GPTForCausalLM
from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.merging import WAYS, combine, load_adapters, merge
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.errors import InputError

NEW = [512, 513]
WITH_NEW = torch.cat((IDS[:, :10], torch.tensor([NEW, NEW])), dim=1)


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt-oss"])
@pytest.mark.parametrize("method", MERGING)
def test_merged_is_adapter_and_base(method, architecture, save, tmp_path):
    folder = save(architecture)
    model = adapted(GPTForCausalLM.from_pretrained(folder), method)
    fit(model)
    wanted = logits(model)
    assert (wanted - logits(GPTForCausalLM.from_pretrained(folder))).abs().max() > 0.01
    save_adapter(model, tmp_path / "adapter")
    merged = merge(load_adapters(load_base(str(folder), AdaptConfig()), {"it": tmp_path / "adapter"}))
    assert type(merged) is GPTForCausalLM
    assert all(parameter.requires_grad for parameter in merged.parameters())
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    close(logits(plain), wanted)
    original = GPTForCausalLM.from_pretrained(folder)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in original.named_parameters()}


# tied, untied, experts; a head with a bias, and scaled embeddings, for which whole tables are trained
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [("gpt2", {}), ("llama", {}), ("gpt-oss", {}), ("gpt-j", {}), ("gpt2", {"scale_embeddings": True})],
)
@pytest.mark.parametrize("method", LEARNS_TOKENS)
def test_new_tokens(method, architecture, fields, save, tmp_path):
    folder = save(architecture, **fields)
    base = GPTForCausalLM.from_pretrained(folder)
    if base.lm_head.bias is not None:
        nn.init.normal_(base.lm_head.bias)
        base.save_pretrained(folder)
    torch.manual_seed(1)
    base.resize_token_embeddings(514)
    before = logits(base, WITH_NEW)
    model = adapted(base, method, new_rows=NEW)
    torch.testing.assert_close(logits(model.eval(), WITH_NEW), before, atol=2e-5, rtol=0)
    fit(model, WITH_NEW)
    wanted = logits(model, WITH_NEW)
    save_adapter(model, tmp_path / "adapter")

    torch.manual_seed(2)  # new rows come out otherwise, and the adapter's take their place
    loaded = load_adapters(load_base(str(folder), AdaptConfig()), {"it": tmp_path / "adapter"})
    tolerance = 2e-5 if method == "pissa" else 0
    torch.testing.assert_close(logits(loaded, WITH_NEW), wanted, atol=tolerance, rtol=0)
    merge(loaded).save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert plain.config.vocab_size == 514
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == plain.config.tie_word_embeddings
    close(logits(plain, WITH_NEW), wanted)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_only_rows_of_new_tokens_are_trained(architecture, make_model):
    base = make_model(architecture)
    base.resize_token_embeddings(514)
    table = base.get_input_embeddings().weight
    model = adapted(base, new_rows=NEW)
    added = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {tuple(parameter.shape) for parameter in added.values()} == {(2, 32)}
    assert len(added) == (1 if architecture == "gpt2" else 2)  # tied rows count once
    before = table.clone()
    fit(model, WITH_NEW)
    assert torch.equal(table, before)


@pytest.mark.parametrize("method", ["top_layers", "norms", "head"])
def test_parts_train_the_tables_of_new_tokens(method, make_model):
    base = make_model("llama")
    base.resize_token_embeddings(514)
    model = adapted(base, method, top_layers=1, new_rows=NEW)
    assert model.get_input_embeddings().weight.requires_grad
    assert model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("architecture", "method", "fields", "rows", "message"),
    [
        ("llama", "prompt_tuning", {}, NEW, r"adapt.method = 'prompt_tuning': it leaves the embeddings alone, and 2"),
        ("llama", "ia3", {}, NEW, r"adapt.method = 'ia3': it leaves"),
        ("llama", "lora", {}, [514], r"new_rows = \[514\]: the embeddings have 514 rows"),
        ("gpt2", "lora", {"lm_head_bias": True}, NEW, r"PEFT drops the bias of an output layer that shares"),
    ],
)
def test_tokens_that_cannot_be_learned(architecture, method, fields, rows, message, make_model):
    base = make_model(architecture, **fields)
    base.resize_token_embeddings(514)
    with pytest.raises(InputError, match=message):
        adapted(base, method, new_rows=rows)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_prompts_are_not_merged(method, make_model):
    with pytest.raises(InputError, match=r"it puts vectors in front of the input, which no weight can hold"):
        merge(adapted(make_model("llama"), method))


@pytest.mark.quantized
def test_a_quantised_base_is_not_merged_into(save):
    pytest.importorskip("torchao")
    base = load_base(str(save("llama", hidden_size=128)), AdaptConfig(quantization="int8"))
    with pytest.raises(InputError, match=r"the base is quantised, and a merged weight would be rounded again"):
        merge(adapted(base))


def test_a_merge_that_changes_logits_is_an_error(make_model, monkeypatch):
    model = adapted(make_model("llama"))
    fit(model)
    unload = model.merge_and_unload

    def spoil(**kwargs):
        merged = unload(**kwargs)
        with torch.no_grad():
            merged.model.layers[0].mlp.up_proj.weight.mul_(1.001)
        return merged

    monkeypatch.setattr(model, "merge_and_unload", spoil)
    with pytest.raises(InputError, match=r"merged, the logits of a probe differ by"):
        merge(model)


# --------------------------------------------------------------------------------------------------- several adapters


@pytest.fixture
def two(save, tmp_path):
    """Return a base's folder, those of two adapters of it, and their logits."""

    def make(method: str = "lora", ranks: tuple[int, int] = (4, 4), **fields):
        folder = save(fields.pop("architecture", "llama"))
        found = {}
        for name, rank, ids in (("a", ranks[0], IDS), ("b", ranks[1], IDS + 100)):
            torch.manual_seed(rank)
            model = adapted(GPTForCausalLM.from_pretrained(folder), method, rank=rank, **fields)
            fit(model, ids)
            save_adapter(model, tmp_path / name)
            found[name] = logits(model)
        return folder, {name: tmp_path / name for name in found}, found

    return make


def test_adapters_are_switched(two):
    folder, folders, found = two()
    model = load_adapters(GPTForCausalLM.from_pretrained(folder), folders)
    assert torch.equal(logits(model), found["a"])
    model.set_adapter("b")
    assert torch.equal(logits(model), found["b"])
    model.set_adapter("a")
    assert torch.equal(logits(model), found["a"])


@pytest.mark.parametrize("ranks", [(4, 4), (2, 4)])
def test_cat_is_the_sum_of_the_changes(ranks, two):
    folder, folders, _ = two(ranks=ranks)
    base = GPTForCausalLM.from_pretrained(folder)
    shares = {"a": 0.7, "b": -0.3}
    weights = {name: parameter.clone() for name, parameter in base.named_parameters()}
    for name, share in shares.items():
        one = merge(load_adapters(GPTForCausalLM.from_pretrained(folder), {name: folders[name]}))
        for key, parameter in one.named_parameters():
            weights[key] += share * (parameter.detach() - base.get_parameter(key).detach())
    merged = merge(combine(load_adapters(GPTForCausalLM.from_pretrained(folder), folders), shares))
    for key, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[key].detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", WAYS)
def test_every_way_gives_an_adapter(how, two):
    folder, folders, found = two()
    model = combine(load_adapters(GPTForCausalLM.from_pretrained(folder), folders), {"a": 1.0, "b": 1.0}, how)
    assert model.active_adapters == ["combined"]
    assert logits(model).isfinite().all()
    assert not torch.equal(logits(model), found["a"])
    merge(model)


def test_a_share_of_one_adapter(two):
    folder, folders, found = two()
    base = GPTForCausalLM.from_pretrained(folder)
    model = combine(load_adapters(base, {"a": folders["a"]}), {"a": 1.0})
    torch.testing.assert_close(logits(model), found["a"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("made", "shares", "how", "message"),
    [
        ({}, {"a": 1, "b": 1}, "tie", r"how = 'tie': adapters are not combined in this way. Did you mean 'ties'\?"),
        ({}, {"a": 1, "c": 1}, "cat", r"adapters = 'c': no adapter bears this name"),
        ({"ranks": (2, 4)}, {"a": 1, "b": 1}, "linear", r"how = 'linear': All adapters must have the same r"),
        ({"method": "dora"}, {"a": 1, "b": 1}, "cat", r"it has magnitudes, which do not add up"),
        ({"method": "ia3"}, {"a": 1, "b": 1}, "cat", r"PEFT combines LoRA only, and this is IA3"),
        ({"architecture": "gpt-oss"}, {"a": 1, "b": 1}, "cat", r"it adapts experts"),
    ],
)
def test_what_cannot_be_combined(made, shares, how, message, two):
    folder, folders, _ = two(**made)
    model = load_adapters(GPTForCausalLM.from_pretrained(folder), folders)
    with pytest.raises(InputError, match=message):
        combine(model, shares, how)


def test_pissa_as_trained_goes_alone(save, tmp_path):
    folder = save("llama")
    model = adapted(GPTForCausalLM.from_pretrained(folder), "pissa")
    model.save_pretrained(tmp_path / "raw")
    save_adapter(model, tmp_path / "plain")
    both = {"one": tmp_path / "raw", "two": tmp_path / "plain"}
    with pytest.raises(InputError, match=r"it takes its start out of the base's weights"):
        load_adapters(GPTForCausalLM.from_pretrained(folder), both)
    load_adapters(GPTForCausalLM.from_pretrained(folder), {"one": tmp_path / "plain", "two": tmp_path / "plain"})


def test_none_are_refused(make_model):
    with pytest.raises(InputError, match=r"adapters = \{\}: there are none"):
        load_adapters(make_model("llama"), {})
