"""Foreign checkpoints: the same logits coming in, the same bits going out."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import gpt_finetune
from gpt_finetune import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTModel, export_native
from gpt_finetune.conversion import DIALECTS, config_from_native, config_to_native, find_tokenizer
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
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
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
    "gpt1": ("OpenAIGPT", OPENAI),
    "gpt1-untied": ("OpenAIGPT", {**OPENAI, "tie_word_embeddings": False, "afn": "swish", "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 16, "eos_token_id": [2, 3]}),
    "llama-biases": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama-3": ("Llama", {**LLAMA, "rope_parameters": LLAMA3_ROPE, "attention_dropout": 0.1, "pretraining_tp": 2}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 5}),
    "mistral-full": ("Mistral", {**LLAMA, "sliding_window": None, "rms_norm_eps": 1e-4}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 16}),
    "qwen3-tied": ("Qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-sliding": (
        "Qwen3",
        {**LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3-unused-window": (
        "Qwen3",
        {**LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
}


def native(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, with weights large enough that every one matters, norms and biases too."""
    architecture, fields = CHECKPOINTS[name]
    config = getattr(transformers, f"{architecture}Config")(**{**fields, **overrides})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
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


def assert_same_logits(a: PreTrainedModel, b: PreTrainedModel, ids: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(ids).logits, b(ids).logits, **TOLERANCE)


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
    with torch.no_grad():
        a, b = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (model, reference))
    torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "gpt1", "llama", "llama-tied"])
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


def test_the_first_releases_have_no_prefix_and_store_their_masks(ids, tmp_path):
    reference = native("gpt2")
    reference.config.save_pretrained(tmp_path)
    state = {key.removeprefix("transformer."): value for key, value in reference.state_dict().items()}
    del state["lm_head.weight"]
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(3)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, info = GPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_logits(model, reference, ids)


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "llama"])
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


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_precision(name, tmp_path):
    native(name).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.bfloat16), ("auto", torch.bfloat16), ("float32", torch.float32)):
        model = GPTForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {expected}
        assert model.dtype == model.config.dtype == expected


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


HEADS = [
    (name, head)
    for name in ("gpt2", "gpt1", "llama", "mistral", "qwen3")
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


def test_base_model_round_trip(tmp_path):
    native("gpt2").base_model.save_pretrained(tmp_path / "theirs")
    export_native(GPTModel.from_pretrained(tmp_path / "theirs"), tmp_path / "back")
    a, b = (transformers.AutoModel.from_pretrained(tmp_path / folder) for folder in ("theirs", "back"))
    assert_same_model(a, b)


@pytest.mark.parametrize("name", ["gpt2", "gpt1-untied", "qwen3"])
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
        ("llama", {}, "llama"),
        ("llama", {"attention_bias": True}, "llama"),
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
    with pytest.raises(InputError, match=r"model_type = 'bert'.*Known: gpt2, llama, mistral, openai-gpt, qwen3"):
        GPTForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}', encoding="utf-8")
    with pytest.raises(InputError, match="model_type = None"):
        GPTForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "activation_function", "quick_gelu"),
        ("llama", "hidden_act", "mish"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(name, field, value, tmp_path):
    native(name, **{field: value}).config.save_pretrained(tmp_path)
    model_type = CHECKPOINTS[name][0].lower()
    with pytest.raises(InputError, match=rf"{model_type}\.{field} = {value!r}: "):
        GPTForCausalLM.from_pretrained(tmp_path)


def test_missing_folder_is_explained_by_transformers(tmp_path):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        GPTForCausalLM.from_pretrained(tmp_path)


def test_export_names_the_options_in_the_way(make_model, tmp_path):
    model = make_model("modern")
    with pytest.raises(InputError) as caught:
        export_native(model, tmp_path / "out")
    message = str(caught.value)
    for dialect in DIALECTS:
        assert f"{dialect}: cannot express" in message
    assert "gated_mlp=False (only True)" in message
    with pytest.raises(InputError, match=r"dialect = 'llama': .*hidden_act='relu2'|gated_mlp=False"):
        export_native(model, tmp_path / "out", "llama")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "overrides", "dialect", "option"),
    [
        ("gpt2", {"num_key_value_heads": 2}, "gpt2", "num_key_value_heads=2"),
        ("gpt2", {"head_dim": 16}, "gpt2", "head_dim=16"),
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
