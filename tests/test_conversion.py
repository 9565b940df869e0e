"""Foreign checkpoints: the same logits coming in, the same bits going out."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Mxfp4Config,
    PreTrainedConfig,
    PreTrainedModel,
)

import gpt_finetune
from gpt_finetune import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTModel, export_native
from gpt_finetune.conversion import DIALECTS, config_from_native, config_to_native, find_tokenizer
from gpt_finetune.conversion.configs import find_obstacles
from gpt_finetune.errors import InputError

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
COMMON = {"vocab_size": 99, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OPENAI = {**COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
}
NEO = {
    **COMMON,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": 5,
}
NEOX = {
    **{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
}
OPT = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.2,
}
del OPT["initializer_range"]
SLIDING = {"use_sliding_window": True, "sliding_window": 4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
OSS = {
    **LLAMA,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "rope_parameters": YARN,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    **LLAMA,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 4,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0},
    },
}
# One per dialect, and then each of its options that another code path serves.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", OPENAI),
    "gpt2-untied": ("GPT2", {**OPENAI, "tie_word_embeddings": False, "n_inner": 80}),
    "gpt2-spelled-out": (
        "GPT2",
        {
            **OPENAI,
            "n_inner": 128,
            "activation_function": "gelu_pytorch_tanh",
            "resid_pdrop": 0,
            "embd_pdrop": 0.2,
            "attn_pdrop": 0.3,
            "summary_type": "last",
            "n_ctx": 64,
            "task_specific_params": {"text-generation": {"do_sample": True}},
            "id2label": {0: "no", 1: "yes", 2: "both"},
        },
    ),
    "gpt2-ids-outside": ("GPT2", {**OPENAI, "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": None}),
    "gpt2-unscaled": ("GPT2", {**OPENAI, "scale_attn_weights": False, "reorder_and_upcast_attn": True}),
    "gpt2-cross": ("GPT2", {**OPENAI, "add_cross_attention": True, "is_decoder": True}),
    "gpt1": ("OpenAIGPT", OPENAI),
    "gpt1-untied": ("OpenAIGPT", {**OPENAI, "tie_word_embeddings": False, "afn": "swish", "layer_norm_epsilon": 1e-3}),
    "bigcode": ("GPTBigCode", OPENAI),
    "bigcode-multi-head": (
        "GPTBigCode",
        {**OPENAI, "multi_query": False, "scale_attn_weights": False, "n_inner": 80, "tie_word_embeddings": False},
    ),
    "bigcode-one-head": ("GPTBigCode", {**OPENAI, "n_head": 1, "multi_query": False}),
    "neo": ("GPTNeo", NEO),
    "neo-global": (
        "GPTNeo",
        {
            **NEO,
            "attention_types": [[["global"], 3]],
            "intermediate_size": 80,
            "tie_word_embeddings": False,
            "resid_dropout": 0.1,
            "embed_dropout": 0.2,
            "activation_function": "relu",
        },
    ),
    "gptj": ("GPTJ", {**OPENAI, "rotary_dim": 4}),
    "gptj-whole-heads": ("GPTJ", {**OPENAI, "rotary_dim": 8, "tie_word_embeddings": True, "n_inner": 80}),
    "gptj-odd-share": ("GPTJ", {**OPENAI, "n_embd": 94, "n_head": 2, "rotary_dim": 6}),
    "neox": ("GPTNeoX", NEOX),
    "neox-pre-norm": (
        "GPTNeoX",
        {
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_dropout": 0.1,
            "rope_parameters": {**LLAMA3_ROPE, "partial_rotary_factor": 1.0},
        },
    ),
    "opt": ("OPT", OPT),
    "opt-post-norm": (
        "OPT",
        {**OPT, "do_layer_norm_before": False, "_remove_final_layer_norm": True, "tie_word_embeddings": False},
    ),
    "opt-bare": (
        "OPT",
        {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "dropout": 0.3, "layerdrop": 0.1},
    ),
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 16, "eos_token_id": [2, 3]}),
    "llama-biases": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama-3": ("Llama", {**LLAMA, "rope_parameters": LLAMA3_ROPE, "attention_dropout": 0.1, "pretraining_tp": 2}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 5}),
    "mistral-full": ("Mistral", {**LLAMA, "sliding_window": None, "rms_norm_eps": 1e-4}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2-tied": ("Qwen2", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {**LLAMA, **SLIDING, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 16}),
    "qwen3-tied": ("Qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-sliding": ("Qwen3", {**LLAMA, **SLIDING, "head_dim": 8, "max_window_layers": 1}),
    "qwen3-unused-window": ("Qwen3", {**LLAMA, **SLIDING, "head_dim": 8, "max_window_layers": 3}),
    "oss": ("GptOss", OSS),
    "oss-options": (
        "GptOss",
        {
            **OSS,
            "attention_bias": False,
            "swiglu_limit": 0.5,
            "layer_types": ["full_attention"] * 3,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.25,
            "rope_parameters": {**YARN, "truncate": True},
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": ("Gemma3Text", GEMMA),
    "gemma3-options": (
        "Gemma3Text",
        {
            **GEMMA,
            "attention_bias": True,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * 3,
        },
    ),
    "gemma3-whole-heads": (
        "Gemma3Text",
        {
            **GEMMA,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5},
                "full_attention": {"rope_type": "default", "rope_theta": 5e4},
            },
        },
    ),
    "gemma3-one-rotation": (
        "Gemma3Text",
        {**GEMMA, "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), LLAMA3_ROPE)},
    ),
    "nanochat": ("NanoChat", LLAMA),
    "nanochat-options": (
        "NanoChat",
        {
            **LLAMA,
            "attention_bias": True,
            "final_logit_softcapping": None,
            "tie_word_embeddings": True,
            "head_dim": 16,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "proportional", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        },
    ),
}


def native_config(name: str, **overrides: Any) -> PreTrainedConfig:
    architecture, fields = CHECKPOINTS[name]
    return getattr(transformers, f"{architecture}Config")(**{**fields, **overrides})


def native(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, with weights large enough that every one matters, norms and biases too."""
    model = AutoModelForCausalLM.from_config(native_config(name, **overrides)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 or key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(params=CHECKPOINTS)
def name(request):
    return request.param


@pytest.fixture
def ids():
    return torch.randint(4, 99, (2, 12))


def plain(config: Any) -> dict[str, Any]:
    volatile = {"_name_or_path", "transformers_version"}
    return {key: value for key, value in config.to_dict().items() if key not in volatile}


def assert_same_model(a: PreTrainedModel, b: PreTrainedModel) -> None:
    assert type(a) is type(b)
    assert plain(a.config) == plain(b.config)
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def encoded(config: Any) -> dict[str, torch.Tensor]:
    """What a decoder with cross-attention takes besides its tokens."""
    if not getattr(config, "add_cross_attention", False):
        return {}
    states = torch.randn((2, 7, config.hidden_size), generator=torch.Generator().manual_seed(0))
    return {"encoder_hidden_states": states, "encoder_attention_mask": torch.arange(7).expand(2, 7) < 5}


def assert_same_logits(a: PreTrainedModel, b: PreTrainedModel, ids: torch.Tensor, **inputs: Any) -> None:
    with torch.no_grad():
        a, b = (model(ids, **encoded(model.config), **inputs).logits for model in (a, b))
    if "attention_mask" in inputs:
        a, b = (logits[inputs["attention_mask"].bool()] for logits in (a, b))
    torch.testing.assert_close(a, b, **TOLERANCE)


# ------------------------------------------------------------------------------------------------------------- in


def test_every_dialect_is_tested():
    types = {getattr(transformers, f"{architecture}Config").model_type for architecture, _ in CHECKPOINTS.values()}
    assert types == set(DIALECTS)


def test_logits_are_equal(name, ids, tmp_path):
    reference = native(name)
    reference.save_pretrained(tmp_path)
    model, info = GPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not model.training
    assert model.num_parameters() == reference.num_parameters()
    assert_same_logits(model, reference, ids)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    assert_same_logits(model, reference, ids, attention_mask=mask)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "gpt1", "neox", "opt", "llama", "llama-tied", "oss"])
def test_sharded_checkpoints(name, ids, tmp_path):
    reference = native(name)
    reference.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path), reference, ids)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pickled_checkpoints(name, ids, tmp_path):
    reference = native(name)
    reference.config.save_pretrained(tmp_path)
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path), reference, ids)


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("gpt2", "h.{}.attn.bias"),
        ("gpt2-cross", "h.{}.crossattention.masked_bias"),
        ("neo", "h.{}.attn.attention.bias"),
        ("gptj", "h.{}.attn.masked_bias"),
        ("neox", "layers.{}.attention.rotary_emb.inv_freq"),
    ],
)
def test_the_first_releases_have_no_prefix_and_store_their_buffers(name, buffer, ids, tmp_path):
    reference = native(name, tie_word_embeddings=True)
    reference.config.save_pretrained(tmp_path)
    state = reference.base_model.state_dict() | {buffer.format(i): torch.ones(1, 1, 64, 64) for i in range(3)}
    if reference.lm_head.bias is not None:
        state["lm_head.bias"] = reference.lm_head.bias
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, info = GPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_logits(model, reference, ids)


def test_a_head_that_transformers_renames_on_the_way(ids, tmp_path):
    reference = native("neox")
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in state
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path), reference, ids)
    state["lm_head.weight"] = state.pop("embed_out.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path), reference, ids)


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "gptj", "neox", "opt", "opt-post-norm", "llama", "oss"])
def test_base_model(name, ids, tmp_path):
    reference = native(name)
    reference.save_pretrained(tmp_path / "head")
    reference.base_model.save_pretrained(tmp_path / "base")
    for folder in ("head", "base"):
        model = GPTModel.from_pretrained(tmp_path / folder)
        with torch.no_grad():
            a, b = model(ids).last_hidden_state, reference.base_model(ids).last_hidden_state
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_config_fields_arrive(tmp_path):
    native("gpt2-spelled-out").save_pretrained(tmp_path)
    config = GPTForCausalLM.from_pretrained(tmp_path).config
    assert (config.residual_dropout, config.embedding_dropout, config.attention_dropout) == (0.0, 0.2, 0.3)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert (config.hidden_act, config.intermediate_size, config.num_labels) == ("gelu_new", 128, 3)
    assert config_from_native(native("llama-tied").config).eos_token_id == [2, 3]
    assert config_from_native(native("gpt2-ids-outside").config).eos_token_id is None
    assert config_from_native(native("mistral").config).layer_types == ["sliding_attention"] * 3


def test_config_alone(tmp_path):
    native("llama-3").config.save_pretrained(tmp_path)
    config, unused = GPTConfig.from_pretrained(tmp_path, use_cache=False, colour="red", return_unused_kwargs=True)
    assert (config.position_embedding_type, config.attention_dropout, config.use_cache) == ("rotary", 0.1, False)
    assert config.rope_parameters == LLAMA3_ROPE
    assert unused == {"colour": "red"}
    config.save_pretrained(tmp_path / "ours")
    assert GPTConfig.from_pretrained(tmp_path / "ours").to_dict() == config.to_dict()


def test_generation_config_is_carried_over(ids, tmp_path):
    reference = native("llama")
    reference.generation_config = GenerationConfig(eos_token_id=[5, 7], pad_token_id=0, top_k=3, do_sample=True)
    reference.save_pretrained(tmp_path / "theirs")
    model = GPTForCausalLM.from_pretrained(tmp_path / "theirs")
    assert (model.generation_config.eos_token_id, model.generation_config.top_k) == ([5, 7], 3)
    options = {"do_sample": False, "max_new_tokens": 12}
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))
    export_native(model, tmp_path / "back")
    back = GenerationConfig.from_pretrained(tmp_path / "back")
    assert (back.eos_token_id, back.top_k) == ([5, 7], 3)


@pytest.mark.parametrize("name", ["bigcode", "neo", "gptj", "neox", "opt", "mistral", "qwen2", "oss", "nanochat"])
def test_greedy_text_is_the_same(name, ids, tmp_path):
    reference = native(name)
    reference.save_pretrained(tmp_path)
    model = GPTForCausalLM.from_pretrained(tmp_path)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12, **encoded(reference.config)}
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_precision(name, tmp_path):
    native(name).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.bfloat16), ("auto", torch.bfloat16), ("float32", torch.float32)):
        model = GPTForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {expected}
        assert model.dtype == model.config.dtype == expected


def test_four_bit_experts_are_read_as_the_numbers_that_they_stand_for(ids, tmp_path):
    native("oss", intermediate_size=64).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for key in [key for key in state if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = state.pop(key).shape
        # two numbers a byte, blocks of 32 numbers with a power of two each; 127 stands for 1
        state[f"{key}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        state[f"{key}_scales"] = torch.randint(122, 127, (experts, outputs, inputs // 32), dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")

    asked = {"quantization_config": Mxfp4Config(dequantize=True)}
    reference = transformers.GptOssForCausalLM.from_pretrained(tmp_path, **asked)
    for options in ({}, asked):
        model, info = GPTForCausalLM.from_pretrained(tmp_path, **options, output_loading_info=True)
        assert not any(info.values()), info
        assert_same_logits(model, reference, ids)
    model.save_pretrained(tmp_path / "ours")
    again = GPTForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same_logits(again, reference, ids)
    assert_same_model(AutoModelForCausalLM.from_pretrained(export_native(again, tmp_path / "back")), reference)


def test_other_arguments_pass_through(ids, tmp_path):
    reference = native("gpt2")
    reference.save_pretrained(tmp_path)
    model = GPTForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", device_map="cpu", attention_dropout=0.5, use_cache=False
    )
    assert model.config._attn_implementation == "eager"
    assert (model.config.attention_dropout, model.config.use_cache) == (0.5, False)
    assert_same_logits(model, reference, ids)
    config = config_from_native(reference.config)
    config.residual_dropout = 0.25
    model = GPTForCausalLM.from_pretrained(tmp_path, config=config)
    assert model.config.residual_dropout == 0.25
    assert config.model_type == "gpt_finetune"
    assert_same_logits(model, reference, ids)
    for config in (reference.config, model.config, GPTConfig.from_pretrained(tmp_path), str(tmp_path)):
        model = GPTForCausalLM.from_pretrained(tmp_path, config=config)
        assert_same_logits(model, reference, ids)
    model.save_pretrained(tmp_path / "ours")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path / "ours", config=config), reference, ids)


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "mistral"])
def test_saves_in_our_format(name, ids, tmp_path):
    native(name).save_pretrained(tmp_path / "theirs")
    model = GPTForCausalLM.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == model.config.model_type == "gpt_finetune"
    assert written["architectures"] == ["GPTForCausalLM"]
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "ours" / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same_model(again, model)
    assert_same_logits(again, model, ids)


def test_a_model_that_was_never_loaded_saves_in_our_format(make_model, tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "llama"])
def test_adapter_on_a_foreign_base(name, ids, tmp_path):
    native(name).save_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=["q_proj", "o_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(GPTForCausalLM.from_pretrained(tmp_path / "base"), lora).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert_same_logits(GPTForCausalLM.from_pretrained(tmp_path / "adapter"), model, ids)
    merged = model.merge_and_unload()
    exported = AutoModelForCausalLM.from_pretrained(export_native(merged, tmp_path / "merged"))
    assert_same_logits(exported, merged, ids)


def test_loading_holds_no_second_copy(tmp_path, monkeypatch):
    from transformers.core_model_loading import Chunk, Transpose

    reference = native("gpt2", n_layer=24)
    reference.save_pretrained(tmp_path)
    size = sum(p.nbytes for p in reference.parameters())

    def living() -> int:
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter) and not o.is_meta]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    seen = []
    for operation in (Transpose, Chunk):

        def watched(self, *args, convert=operation.convert, **kwargs):
            result = convert(self, *args, **kwargs)
            seen.append(living())
            return result

        monkeypatch.setattr(operation, "convert", watched)
    gc.freeze()  # only what appears from here on is counted
    try:
        model = GPTForCausalLM.from_pretrained(tmp_path)
    finally:
        gc.unfreeze()
    assert len(seen) >= 24 * 5
    assert size == sum(p.nbytes for p in model.parameters())
    assert size / 2 < max(seen) < 1.2 * size  # a layer is a 24th


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "qwen3"])
def test_other_heads_take_the_body(name, tmp_path):
    reference = native(name)
    reference.save_pretrained(tmp_path)
    model, info = GPTForSequenceClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {"score.weight"}
    assert model.score.out_features == 3
    assert torch.equal(model.get_input_embeddings().weight, reference.get_input_embeddings().weight)


# One of each dialect.
FIRST = list({architecture: name for name, (architecture, _) in reversed(CHECKPOINTS.items())}.values())
HEADS = [
    (name, head)
    for name in FIRST
    for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering")
    if hasattr(transformers, f"{CHECKPOINTS[name][0]}For{head}")
]


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_heads_in_and_out(name, head, ids, tmp_path):
    architecture, fields = CHECKPOINTS[name]
    labels = {} if head == "QuestionAnswering" else {"num_labels": 3}
    config = getattr(transformers, f"{architecture}Config")(**fields, **labels)
    reference_class = getattr(transformers, f"{architecture}For{head}")
    reference = reference_class(config).eval()
    reference.save_pretrained(tmp_path / "theirs")
    ours = getattr(gpt_finetune, f"GPTFor{head}")
    model, info = ours.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        a, b = model(ids), reference(ids)
    for key in ("start_logits", "end_logits") if head == "QuestionAnswering" else ("logits",):
        torch.testing.assert_close(a[key], b[key], **TOLERANCE)
    export_native(model, tmp_path / "back")
    theirs, back = (reference_class.from_pretrained(tmp_path / folder) for folder in ("theirs", "back"))
    assert_same_model(back, theirs)


def test_a_head_that_transformers_lacks(make_config, tmp_path):
    model = gpt_finetune.GPTForMultipleChoice(make_config())
    with pytest.raises(InputError, match=r"GPTForMultipleChoice'.*gpt2 has no such head.*model\.model"):
        export_native(model, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ out


def test_round_trip_is_exact(name, tmp_path):
    native(name).save_pretrained(tmp_path / "theirs")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    GPTForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    model = GPTForCausalLM.from_pretrained(tmp_path / "ours")  # what is kept survives our own format
    folder = export_native(model, tmp_path / "back")
    back, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_model(back, reference)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors"]


@pytest.mark.parametrize("name", ["gpt2", "gptj", "neox", "opt", "opt-post-norm"])
def test_base_model_round_trip(name, tmp_path):
    native(name).base_model.save_pretrained(tmp_path / "theirs")
    export_native(GPTModel.from_pretrained(tmp_path / "theirs"), tmp_path / "back")
    a, b = (transformers.AutoModel.from_pretrained(tmp_path / folder) for folder in ("theirs", "back"))
    assert_same_model(a, b)


@pytest.mark.parametrize("name", ["gpt2", "gpt1-untied", "bigcode", "gptj", "neox", "opt", "qwen3", "oss", "nanochat"])
def test_fine_tuned_model_exports(name, ids, tmp_path):
    native(name).save_pretrained(tmp_path / "theirs")
    model = GPTForCausalLM.from_pretrained(tmp_path / "theirs").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    export_native(model.eval(), tmp_path / "back", max_shard_size="8KB")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 3
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert_same_logits(back, model, ids)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert not torch.equal(before(ids).logits, back(ids).logits)


@pytest.mark.parametrize(
    ("architecture", "overrides", "expected"),
    [
        ("gpt2", {}, "gpt2"),
        ("gpt2", {"hidden_act": "relu2", "intermediate_size": 40, "tie_word_embeddings": False}, "gpt2"),
        ("gpt1", {"hidden_act": "gelu_new"}, "openai-gpt"),
        ("gpt2", {"add_cross_attention": True, "attention_scale": 1.0}, "gpt2"),
        ("gpt2", {"position_offset": 2, "hidden_act": "relu"}, "opt"),
        ("gpt2", {"position_offset": 2, "block_type": "post_norm", "norm_affine": False}, "opt"),
        ("multi-query", {"head_dim": None}, "gpt_bigcode"),
        (
            "sliding",
            {"attention_bias": False, "attention_output_bias": True, "attention_scale": 1.0},
            "gpt_neo",
        ),
        ("gpt-j", {}, "gptj"),
        ("gpt-neox", {"attention_output_bias": True}, "gpt_neox"),
        ("gpt-neox", {"attention_output_bias": True, "rope_parameters": {"rope_theta": 1e4}}, "gpt_neox"),
        ("gpt-oss", {}, "gpt_oss"),
        ("nanochat", {}, "nanochat"),
        ("llama", {}, "llama"),
        ("llama", {"attention_bias": True}, "llama"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}}, "llama"),
        ("llama", {"attention_bias": True, "attention_output_bias": False}, "qwen2"),
        ("llama", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "mistral"),
        ("llama", {"qk_norm": True, "head_dim": 16, "num_key_value_heads": 1}, "qwen3"),
        (
            "llama",
            {"qk_norm": True, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
            "qwen3",
        ),
    ],
)
def test_our_own_models_export_to_what_fits_first(make_model, architecture, overrides, expected, ids, tmp_path):
    model = make_model(architecture, **overrides)
    folder = export_native(model, tmp_path / "out")
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == expected
    assert "auto_map" not in written
    back = AutoModelForCausalLM.from_pretrained(folder)
    assert type(back).__module__.startswith("transformers.")
    assert_same_logits(back, model, ids)
    assert (back.config.eos_token_id, back.config.pad_token_id) == (1, 0)
    again = GPTForCausalLM.from_pretrained(folder)
    assert_same_logits(again, model, ids)


def test_origin_comes_first_and_another_dialect_can_be_asked_for(ids, tmp_path):
    native("mistral-full").save_pretrained(tmp_path / "mistral")
    model = GPTForCausalLM.from_pretrained(tmp_path / "mistral")
    assert transformers.AutoConfig.from_pretrained(export_native(model, tmp_path / "a")).model_type == "mistral"
    llama = AutoModelForCausalLM.from_pretrained(export_native(model, tmp_path / "b", "llama"))
    assert llama.config.model_type == "llama"
    assert_same_logits(llama, model, ids)


def test_what_was_kept_never_contradicts_what_was_changed():
    config = config_from_native(native("gpt2-spelled-out").config)
    config.hidden_act = "relu"
    config.eos_token_id = 9
    back = config_to_native(config, "gpt2")
    assert (back.activation_function, back.eos_token_id, back.summary_type) == ("relu", 9, "last")
    assert config_from_native(back).hidden_act == "relu"
    config = config_from_native(native_config("neo"))
    assert config_to_native(config, "gpt_neo").attention_types == [[["global", "local"], 1], [["local"], 1]]
    config.layer_types, config.sliding_window = ["full_attention"] * 3, None
    assert config_to_native(config, "gpt_neo").attention_types == [[["global"] * 3, 1]]


def test_tokenizer_goes_along(make_model, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    text = "def add(a, b):\n    return 床前明月光"
    model = make_model("llama")
    export_native(model, tmp_path / "passed", tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    export_native(GPTForCausalLM.from_pretrained(tmp_path / "ours"), tmp_path / "beside")
    gpt2 = make_model("gpt2")
    export_native(gpt2, tmp_path / "gpt2", tokenizer=tokenizer)
    for folder in ("passed", "beside", "gpt2"):
        loaded = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text


def test_tokenizer_without_a_class_is_still_read_as_theirs(make_tokenizer, tmp_path):
    native("gpt2", vocab_size=300).save_pretrained(tmp_path / "gpt2")
    tokenizer = make_tokenizer()
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps(bpe["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in bpe["merges"])
    (tmp_path / "gpt2" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    model = GPTForCausalLM.from_pretrained(tmp_path / "gpt2")
    found = find_tokenizer(tmp_path / "gpt2")
    model.save_pretrained(tmp_path / "ours")
    found.save_pretrained(tmp_path / "ours")
    export_native(GPTForCausalLM.from_pretrained(tmp_path / "ours"), tmp_path / "back")
    for folder in ("ours", "back"):
        text = "def add(a, b): 床"
        assert AutoTokenizer.from_pretrained(tmp_path / folder)(text)["input_ids"] == theirs(text)["input_ids"]
    native("gpt2").save_pretrained(tmp_path / "none")
    assert find_tokenizer(tmp_path / "none") is None


# --------------------------------------------------------------------------------------------------------- refused


def test_unknown_dialect(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(InputError, match=rf"model_type = 'bert'.*Known: {', '.join(sorted(DIALECTS))}"):
        GPTForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}', encoding="utf-8")
    with pytest.raises(InputError, match="model_type = None"):
        GPTForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "activation_function", "mish"),
        ("bigcode", "add_cross_attention", True),
        ("opt", "word_embed_proj_dim", 16),
        ("opt", "_remove_final_layer_norm", True),
        ("llama", "hidden_act", "mish"),
        ("oss", "swiglu_alpha", 1.5),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(name, field, value, tmp_path):
    config = native_config(name, **{field: value})
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{config.model_type}\.{field} = {value!r}: "):
        GPTForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("gptj", "rotary_dim", 3, "turns 3 coordinates"),
        ("gptj", "rotary_dim", 0, "turns 0 coordinates"),
        ("gptj", "rotary_dim", 16, "not more than the head has"),
        ("neo", "attention_types", [[["global", "sparse", "local"], 1]], r"layer_types has \['sparse'\]"),
        ("oss", "sliding_window", None, "sliding_window=None with layer_types"),
        ("oss", "quantization_config", {"quant_method": "gptq"}, r"quant_method = 'gptq'.*mxfp4 can"),
        ("oss", "quantization_config", {"bits": 4}, r"quant_method = 'unknown'.*mxfp4 can"),
    ],
)
def test_what_contradicts_itself_is_refused(name, field, value, message):
    with pytest.raises(InputError, match=message):
        config_from_native(native_config(name, **{field: value}))


def test_missing_folder_is_explained_by_transformers(tmp_path):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        GPTForCausalLM.from_pretrained(tmp_path)


def test_export_names_the_options_in_the_way(make_model, tmp_path, capsys):
    model = make_model("modern")
    with pytest.raises(InputError) as caught:
        export_native(model, tmp_path / "out")
    message = str(caught.value)
    assert "of the nearest, qwen3 cannot express gated_mlp=False (only True); llama cannot" in message
    assert capsys.readouterr().err == ""  # nor a warning about what was only tried
    with pytest.raises(InputError, match=r"dialect = 'llama': .*hidden_act='relu2'|gated_mlp=False"):
        export_native(model, tmp_path / "out", "llama")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "overrides", "dialect", "option"),
    [
        ("gpt2", {"num_key_value_heads": 2}, "gpt2", "num_key_value_heads=2"),
        ("gpt2", {"head_dim": 16}, "gpt2", "head_dim=16"),
        ("gpt-j", {"head_dim": 64}, "gptj", "head_dim=64"),
        ("gpt2", {"attention_bias": False}, "gpt2", "attention_bias=False"),
        ("gpt2", {"position_embedding_type": "sinusoidal"}, "gpt2", "position_embedding_type='sinusoidal'"),
        ("gpt1", {}, "openai-gpt", "hidden_act='gelu'"),
        ("llama", {"residual_dropout": 0.1}, "llama", "residual_dropout=0.1"),
        ("llama", {"qk_norm": True}, "llama", "qk_norm=True"),
        ("llama", {"mlp_bias": True}, "mistral", "mlp_bias=True"),
        ("llama", {}, "qwen3", "qk_norm=False"),
        ("llama", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}, "llama", "hidden size"),
    ],
)
def test_export_refuses_one_option(make_config, architecture, overrides, dialect, option):
    config = make_config(architecture, **overrides)
    with pytest.raises(InputError) as caught:
        config_to_native(config, dialect)
    assert option in str(caught.value)


PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize("dialect", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {"position_offset": 2},
        {"embedding_norm": True},
        {"norm_affine": False},
        {"block_type": "parallel"},
        {"block_type": "parallel_shared_norm"},
        {"swiglu_limit": 7.0, "gated_mlp": True},
        {"num_local_experts": 4, "num_experts_per_tok": 2, "gated_mlp": True},
        {"router_aux_loss_coef": 0.5},
        {"output_router_logits": True, **EXPERTS, "gated_mlp": True},
        {"attention_output_bias": False, "attention_bias": True},
        {"attention_scale": 0.5},
        {"attention_sinks": True},
        {"is_causal": False},
        {"cross_attention_hidden_size": 48, "add_cross_attention": True},
        {"lm_head_bias": True},
        {"final_logit_softcapping": 15.0},
        {"rope_parameters": PARTIAL, "position_embedding_type": "rotary"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_export_names_each_option_that_these_lack(make_config, dialect, options):
    option, value = next(iter(options.items()))
    if option == "position_offset":  # of a learned table, which is in the way of one of the two anyhow
        options = {**options, "position_embedding_type": "learned"}
    obstacles = find_obstacles(make_config(dialect, **options), dialect)
    assert any(obstacle.startswith(f"{option}={value!r} (only ") for obstacle in obstacles), obstacles


def test_export_refuses_a_folder_in_use(make_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        export_native(make_model(), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export_native(make_model(), empty) == empty
    assert (empty / "config.json").is_file()


def test_export_leaves_nothing_behind_when_it_fails(make_model, tmp_path):
    class Broken:
        def save_pretrained(self, folder: Any) -> None:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        export_native(make_model(), tmp_path / "out", tokenizer=Broken())
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_other_models(make_model, tmp_path):
    with pytest.raises(InputError, match="GPT2LMHeadModel is not a model of gpt_finetune"):
        export_native(native("gpt2"), tmp_path / "out")
    with pytest.raises(InputError, match="model_type = 'bert'"):
        export_native(make_model(), tmp_path / "out", "bert")
    model = make_model()
    model.model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"its weights are not those of a GPT2LMHeadModel: .*adapter"):
        export_native(model, tmp_path / "out")


def test_config_of_ours_is_not_native(make_config):
    with pytest.raises(InputError, match="model_type = 'gpt_finetune'"):
        config_from_native(make_config())
    assert isinstance(config_from_native(native("qwen3").config), GPTConfig)
