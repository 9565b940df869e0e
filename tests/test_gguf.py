"""GGUF files: the logits of the model that was written, and of transformers' own class on the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import GGUF_CONFIG_MAPPING

from gpt_finetune import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTModel, export_native
from gpt_finetune.conversion import DIALECTS
from gpt_finetune.conversion import gguf as reading
from gpt_finetune.errors import InputError

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    **IDS,
    "vocab_size": 99,
    "initializer_range": 0.2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    "tie_word_embeddings": False,
}
GPT2 = {**IDS, "vocab_size": 99, "initializer_range": 0.2, "n_embd": 32, "n_layer": 2, "n_head": 4}
# name: transformers' class, GGUF's architecture, fields
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2", "gpt2", GPT2),
    "gpt2-sizes": ("GPT2", "gpt2", {**GPT2, "n_positions": 64, "n_inner": 80}),
    "llama": ("Llama", "llama", LLAMA),
    "llama-tied": ("Llama", "llama", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", "llama", {**LLAMA, "sliding_window": 4096}),
    "qwen2": ("Qwen2", "qwen2", LLAMA),
    "qwen3": ("Qwen3", "qwen3", {**LLAMA, "head_dim": 128}),
    "qwen3-sizes": ("Qwen3", "qwen3", {**LLAMA, "head_dim": 16}),
    "gemma3": (
        "Gemma3Text",
        "gemma3",
        # the file does not say which layers slide, nor by what they turn
        {
            **LLAMA,
            "num_hidden_layers": 6,
            "head_dim": 256,
            "sliding_window": 4,
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e4}},
            "tie_word_embeddings": True,
        },
    ),
}
# Transformers takes these sizes for the default ones, and finds no names for a Mistral's weights.
OURS_ALONE = {"gpt2-sizes", "mistral", "qwen3-sizes"}


def native(name: str) -> PreTrainedModel:
    architecture, _, fields = FILES[name]
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{architecture}Config")(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
                parameter.add_(1).sub_(1)  # a Gemma's are written plus 1, which is to round nothing
    return model


def write(name: str, model: PreTrainedModel, file: Path, **more: Any) -> None:
    """Write a model as llama.cpp's converter does: its names, its order of rows."""
    _, architecture, _ = FILES[name]
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(config.model_type)  # by which transformers tells a Mistral from a Llama
    rotation = getattr(config, "rope_parameters", {})
    rotation = rotation.get("full_attention", rotation)
    for key, ours in GGUF_CONFIG_MAPPING.get(config.model_type, GGUF_CONFIG_MAPPING.get(architecture)).items():
        ours = {"n_ctx": "n_positions", "feed_forward_length": "n_inner"}.get(ours, ours)
        value = rotation["rope_theta"] if ours == "rope_theta" else getattr(config, ours or "", None)
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{architecture}.{key}", value)
    if config.model_type == "qwen3":
        writer.add_key_length(config.head_dim)
    for key, value in more.items():
        writer.add_string(f"{architecture}.{key.replace('_', '.')}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = key.rpartition(".")
        if architecture == "llama" and suffix == "weight" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            # rotated pairs are neighbours there, and half a head apart here
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        if architecture == "gpt2" and suffix == "weight" and stem.endswith(("c_attn", "c_proj", "c_fc")):
            tensor = tensor.T
        if architecture == "gemma3" and stem.endswith("norm"):
            tensor = tensor + 1  # kept whole there
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture
def ids():
    return torch.randint(4, 99, (2, 12))


def assert_same_logits(a: PreTrainedModel, b: PreTrainedModel, ids: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(ids).logits, b(ids).logits, **TOLERANCE)


def test_every_readable_dialect_is_tested():
    """But gpt-oss, of which transformers' reader has the name, and finds neither the rotary scaling nor the experts."""
    assert {getattr(transformers, f"{FILES[name][0]}Config").model_type for name in FILES} == {
        name for name in DIALECTS if name.removesuffix("_text") in GGUF_CONFIG_MAPPING and name != "gpt_oss"
    }


def test_logits_are_equal(name, ids, tmp_path):
    written = native(name)
    write(name, written, tmp_path / "x.gguf")
    model, info = GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", output_loading_info=True)
    assert not any(info.values()), info
    assert not model.training
    assert model.num_parameters() == written.num_parameters()
    assert_same_logits(model, written, ids)
    if name not in OURS_ALONE:
        reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
        assert_same_logits(model, reference, ids)
        assert model.generation_config.to_dict() == reference.generation_config.to_dict()


def test_it_trains_saves_and_exports_like_any_other(name, ids, tmp_path):
    written = native(name)
    write(name, written, tmp_path / "x.gguf")
    model = GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert (model.config.model_type, model.name_or_path) == ("gpt_finetune", str(tmp_path))
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "ours")
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path / "ours"), written, ids)
    back = AutoModelForCausalLM.from_pretrained(export_native(model, tmp_path / "back"))
    assert type(back) is type(written)
    for key, tensor in written.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_heads_and_the_config_alone(name, ids, tmp_path):
    written = native(name)
    write(name, written, tmp_path / "x.gguf")
    config = GPTConfig.from_pretrained(tmp_path, gguf_file="x.gguf", attention_dropout=0.5)
    assert (config.hidden_size, config.eos_token_id, config.attention_dropout) == (32, 2, 0.5)
    base = GPTModel.from_pretrained(tmp_path, gguf_file="x.gguf")
    with torch.no_grad():
        a, b = base(ids).last_hidden_state, written.base_model(ids).last_hidden_state
    torch.testing.assert_close(a, b, **TOLERANCE)
    head = GPTForSequenceClassification.from_pretrained(tmp_path, gguf_file="x.gguf", num_labels=3)
    assert (head.score.out_features, head.num_labels) == (3, 3)
    assert torch.equal(head.get_input_embeddings().weight, written.get_input_embeddings().weight)
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", config=config), written, ids)


@pytest.mark.parametrize(("dtype", "expected"), [(None, "float32"), ("auto", "float32"), ("bfloat16", "bfloat16")])
def test_precision(dtype, expected, tmp_path):
    write("llama", native("llama"), tmp_path / "x.gguf")
    model = GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=dtype)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{expected}"}


def test_weights_are_held_once(tmp_path, monkeypatch):
    """What the reader made is what the model holds, where no step of the conversion changes it."""
    from gpt_finetune.conversion import loading

    write("llama", native("llama"), tmp_path / "x.gguf")
    read: dict[str, torch.Tensor] = {}

    def watched(*args: Any) -> dict[str, torch.Tensor]:
        read.update(reading.weights_from_gguf(*args))
        return read

    monkeypatch.setattr(loading, "weights_from_gguf", watched)
    model = GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
    weights = model.state_dict()
    assert {key: tensor.data_ptr() for key, tensor in read.items()} == {key: weights[key].data_ptr() for key in read}


# --------------------------------------------------------------------------------------------------------- refused


def write_header(file: Path, architecture: str, **fields: str) -> None:
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in fields.items():
        writer.add_string(f"{architecture}.{key.replace('_', '.')}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_architecture_of_no_dialect(tmp_path):
    write_header(tmp_path / "x.gguf", "mamba")
    for load in (GPTForCausalLM.from_pretrained, GPTConfig.from_pretrained):
        with pytest.raises(InputError, match=r"model_type = 'mamba': .*'llama'"):
            load(tmp_path, gguf_file="x.gguf")


def test_an_architecture_that_transformers_cannot_read(tmp_path):
    write_header(tmp_path / "x.gguf", "jamba")
    with pytest.raises(InputError, match=r"gguf_file = .*architecture jamba is not supported.*Use the checkpoint"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")


def test_scaled_positions_are_not_dropped_in_silence(tmp_path):
    write("llama", native("llama"), tmp_path / "x.gguf", rope_scaling_type="linear")
    with pytest.raises(InputError, match=r"gguf_file = .*rotary positions are scaled"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")


def test_a_scale_of_scores_that_no_file_says(tmp_path, monkeypatch):
    """Gemma 3 27B has heads of 128 coordinates, and a scale of scores that transformers would not know of."""
    _, architecture, fields = FILES["gemma3"]
    monkeypatch.setitem(FILES, "gemma3", ("Gemma3Text", architecture, {**fields, "head_dim": 128}))
    write("gemma3", native("gemma3"), tmp_path / "x.gguf")
    with pytest.raises(InputError, match=r"gguf_file = .*head_dim is 128, and .* for 256 only"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")


def test_what_transformers_reads_only_in_part(tmp_path):
    write_header(tmp_path / "x.gguf", "gpt-oss", rope_scaling_type="yarn")
    with pytest.raises(InputError, match=r"gguf_file = .*rotary positions are scaled"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
    model = native("llama")
    del model.model.layers[1].mlp.up_proj
    write("llama", model, tmp_path / "y.gguf")
    missing = r"not find all weights of a LlamaForCausalLM in it, such as model\.layers\.1\.mlp\.up_proj\.weight"
    with pytest.raises(InputError, match=missing):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="y.gguf")


def test_what_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_text("not one", encoding="utf-8")
    with pytest.raises(InputError, match=r"gguf_file = .*transformers cannot read it"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
    with pytest.raises(OSError, match=r"y\.gguf"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="y.gguf")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "is_gguf_available", lambda: False)
    with pytest.raises(InputError, match=r"gguf_file = 'x\.gguf': .*not installed\. Run `pip install gguf`"):
        GPTForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
