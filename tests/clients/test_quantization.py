from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow

IDS = torch.arange(2, 26).view(2, 12)
# the kernels of 8 and 4 bits want layers at least so wide
WIDE = {"hidden_size": 128, "initializer_range": 0.05}
NAMES = pytest.mark.parametrize("name", ["gpt2", "llama", "modern"])


def load(folder, quantization=None):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization).eval()


@torch.no_grad()
def error(model, exact):
    """Return how far the logits are off, relative to their spread."""
    wanted = exact(IDS).logits
    return ((model(IDS).logits.float() - wanted).norm() / wanted.norm()).item()


def generates(model):
    said = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    return said.shape[1] > IDS.shape[1]


@pytest.mark.client("torchao")
@NAMES
def test_torchao(save, name):
    """`TorchAoConfig` with int8 weights: logits within 2 percent, generates"""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder = save(name, **WIDE)
    model = load(folder, TorchAoConfig(Int8WeightOnlyConfig()))
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"
    assert 0 < error(model, load(folder)) < 0.02
    assert generates(model)


@pytest.mark.client("bitsandbytes")
@NAMES
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes(save, name, kind):
    """`BitsAndBytesConfig` with int8 or nf4 weights: logits within 3 or 30 percent, generates, trains a LoRA on top

    Layers at least 128 wide.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    folder = save(name, **WIDE)
    settings = {
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    }
    model = load(folder, BitsAndBytesConfig(**settings[kind]))
    assert "bitsandbytes" in type(model.model.layers[0].mlp.up_proj).__module__
    assert 0 < error(model, load(folder)) < {"int8": 0.03, "nf4": 0.3}[kind]
    assert generates(model)
    model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(task_type="CAUSAL_LM"))
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
