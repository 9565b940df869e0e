"""The fingerprint knows a base again whatever it is held in, and an adapter refuses another base."""

from __future__ import annotations

import json
import time

import pytest
import torch
from adapting import PEFT_METHODS, adapted, fit

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.adaptation.bases import check_base, fingerprint_of
from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.adaptation.methods import load_base
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.errors import InputError


@pytest.fixture
def trained(save, tmp_path):
    """Return a maker of a base with a trained adapter and its run's receipt: both folders."""

    def make(method: str = "lora", **recorded):
        folder, adapter = save("llama"), tmp_path / "adapter"
        base = GPTForCausalLM.from_pretrained(folder)
        receipt = {"model": {"base_fingerprint": fingerprint_of(base), **recorded}}
        model = adapted(base, method)
        fit(model, steps=1)
        save_adapter(model, adapter)
        (adapter / "run.json").write_text(json.dumps(receipt))
        return folder, adapter

    return make


def test_one_base_has_one_fingerprint(save):
    folder = save("llama", hidden_size=128)
    found = fingerprint_of(folder)
    assert fingerprint_of(str(folder)) == fingerprint_of(load_base(str(folder), AdaptConfig())) == found
    model = adapted(GPTForCausalLM.from_pretrained(folder))
    fit(model)
    assert fingerprint_of(model) == found


def test_precision_does_not_count(save, tmp_path):
    GPTForCausalLM.from_pretrained(save("llama"), dtype="bfloat16").save_pretrained(tmp_path / "half")
    half = GPTForCausalLM.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert fingerprint_of(half) == fingerprint_of(half.float()) == fingerprint_of(tmp_path / "half")
    assert fingerprint_of(half) != fingerprint_of(save("llama"))


@pytest.mark.quantized
def test_a_quantised_base_has_the_fingerprint_of_its_checkpoint(save):
    pytest.importorskip("torchao")
    folder = save("llama", hidden_size=128)
    quantized = load_base(str(folder), AdaptConfig(quantization="int8"))
    assert fingerprint_of(quantized) == fingerprint_of(folder)
    assert fingerprint_of(adapted(quantized)) == fingerprint_of(folder)


def test_one_number_changes_it(make_model):
    model = make_model("gpt2")
    before = fingerprint_of(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert fingerprint_of(model) != before


def test_names_and_shapes_count(make_model):
    model = make_model("gpt2")
    before = fingerprint_of(model)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(model.model.layers[0].mlp.up_proj.weight.view(32, -1))
    assert fingerprint_of(model) != before


def test_it_takes_less_than_a_second_for_135_million_parameters():
    with torch.device("meta"):
        sizes = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 27, "num_attention_heads": 9}
        model = GPTForCausalLM(preset("tiny", **sizes))
    model.to_empty(device="cpu")
    assert model.num_parameters() > 130e6
    start = time.process_time()
    fingerprint_of(model)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_its_own_base_is_let_through(method, trained):
    folder, adapter = trained(method)
    check_base(adapter, GPTForCausalLM.from_pretrained(folder))


def test_other_weights_are_refused(trained, make_model):
    _, adapter = trained()
    torch.manual_seed(5)
    with pytest.raises(InputError, match=r"adapter = .*it was trained on a base with the fingerprint \w+, and this"):
        check_base(adapter, make_model("llama"))
    (adapter / "run.json").unlink()
    check_base(adapter, make_model("llama"))  # nothing is recorded: only shapes speak


def test_a_new_head_does_not_count_but_what_stands_below_it_does(save):
    from gpt_finetune import GPTForSequenceClassification

    folder = save("llama")
    found = []
    for seed, labels in ((0, 2), (1, 3)):
        torch.manual_seed(seed)
        model = GPTForSequenceClassification.from_pretrained(folder, num_labels=labels)
        found.append(fingerprint_of(model))
        found.append(fingerprint_of(adapted(model)))
    assert len(set(found)) == 1
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "q_proj" in name and "lora" not in name).add_(1)
    assert fingerprint_of(model) != found[0]


def test_the_receipt_stands_above_a_checkpoint(trained, make_model):
    folder, adapter = trained()
    checkpoint = adapter / "checkpoint-3"
    save_adapter(adapted(GPTForCausalLM.from_pretrained(folder)), checkpoint)
    torch.manual_seed(5)
    with pytest.raises(InputError, match=r"fingerprint"):
        check_base(checkpoint, make_model("llama"))


@pytest.mark.parametrize(
    ("method", "architecture", "fields", "message"),
    [
        ("lora", "gpt2", {}, r"it adapts model.layers.0.mlp.gate_proj, which GPTForCausalLM does not have"),
        ("lora", "llama", {"hidden_size": 64}, r"with \w+=(32|64|128|16), and this model has"),
        ("lora", "llama", {"num_hidden_layers": 1}, r"it adapts model.layers.1.\S+, which"),
        ("ia3", "gpt-oss", {}, r"it adapts model.layers.0.mlp.down_proj, which"),
        ("prompt_tuning", "llama", {"hidden_size": 64}, r"its prompt was made for token_dim=32, and this model has 64"),
        ("prefix_tuning", "llama", {"num_hidden_layers": 1}, r"made for num_layers=2, and this model has 1"),
    ],
)
def test_other_shapes_are_refused_before_weights_are_read(method, architecture, fields, message, trained, make_config):
    _, adapter = trained(method)
    with torch.device("meta"):
        other = GPTForCausalLM(make_config(architecture, **fields))
    with pytest.raises(InputError, match=message):
        check_base(adapter, other)


def test_no_adapter_there(tmp_path, make_model):
    with pytest.raises(InputError, match=r"there is no adapter_config.json to be read in it"):
        check_base(tmp_path, make_model("llama"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_model.safetensors cannot be read"):
        check_base(tmp_path, make_model("llama"))


def test_no_model_there(tmp_path):
    with pytest.raises(InputError, match=r"model = "):
        fingerprint_of(tmp_path)
