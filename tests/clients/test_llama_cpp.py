from __future__ import annotations

import json

import pytest
import torch

pytestmark = [pytest.mark.client("xllamacpp"), pytest.mark.slow]

PROMPT = list(range(20, 30))


def interleaved(weight, heads):
    """Reorder rotary rows from halves, as transformers has them, to pairs, as llama.cpp's `llama` does."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(folder, path):
    """Write a native gpt2 or llama checkpoint with its byte-level tokenizer as a GGUF in float32."""
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    if config.model_type == "llama":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight = weight.T  # GPT-2 stores its layers the other way round
        elif name.endswith("q_proj.weight"):
            weight = interleaved(weight, heads)
        elif name.endswith("k_proj.weight"):
            weight = interleaved(weight, groups)
        known = names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        writer.add_tensor(known or names.get_name(name, try_suffixes=(".weight", ".bias")), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_llama_cpp(save, tokenizer, name, tmp_path):
    """llama.cpp on a GGUF of the native export: greedy equal, log-probabilities (1e-3)

    Weights and cache in float32, flash attention off: with it, on CPU, log-probabilities are off by 3e-3.
    """
    import xllamacpp

    from gpt_finetune import GPTForCausalLM, export_native

    folder = save(name)
    model = GPTForCausalLM.from_pretrained(folder).eval()
    write_gguf(export_native(model, tmp_path / "native"), tmp_path / "model.gguf")

    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "model.gguf")
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    # its answers pass over tokens that end amid a character
    barred = [i for i in range(len(tokenizer)) if i in tokenizer.all_special_ids or not tokenizer.decode([i]).isascii()]
    request = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0.0, "logprobs": 1}
    said = xllamacpp.Server(params).handle_completions({**request, "logit_bias": [[i, False] for i in barred]})
    steps = said["choices"][0]["logprobs"]["content"]
    ids = [step["id"] for step in steps]
    assert len(ids) == 8
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    wanted[:, barred] = -torch.inf
    assert ids == wanted.argmax(-1).tolist()
    assert [step["logprob"] for step in steps] == pytest.approx(wanted.amax(-1).tolist(), abs=1e-3)
