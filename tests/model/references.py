"""The reference architectures of transformers at tiny size, and how they become ours."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt_finetune import GPTForCausalLM

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
VOCABULARY = 99
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COMMON = {"vocab_size": VOCABULARY, **IDS}
NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)

OPENAI = {
    **COMMON,
    **NO_DROPOUT,
    "layer_norm_epsilon": 1e-3,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}
SIZE = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
ROTATION = {"rope_type": "default", "rope_theta": 100.0}
LLAMA = {**GROUPED, "rms_norm_eps": 1e-3, "rope_parameters": ROTATION}
GPT_NEO = {
    **COMMON,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 1e-3,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}
GPT_NEOX = {**SIZE, "layer_norm_eps": 1e-3, "rope_parameters": {**ROTATION, "partial_rotary_factor": 0.5}}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
OPT = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT_OSS = {
    **GROUPED,
    "rms_norm_eps": 1e-3,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "swiglu_limit": 0.5,  # at this size, gpt-oss's own 7 would never be reached
    "rope_parameters": {**YARN, "truncate": False},
}

GEMMA3 = {
    **GROUPED,
    "rms_norm_eps": 1e-3,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": 2.0,
    "rope_parameters": {"sliding_attention": ROTATION, "full_attention": {**YARN, "truncate": True}},
}

# name -> transformers' config class, without the ending, and its fields; one for each path through our code
REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai-gpt": ("OpenAIGPT", OPENAI),
    "gpt2": ("GPT2", OPENAI),
    "gpt_neo": ("GPTNeo", GPT_NEO),
    "gptj": ("GPTJ", {**OPENAI, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoX", GPT_NEOX),
    "gpt_neox-sequential": ("GPTNeoX", {**GPT_NEOX, "use_parallel_residual": False}),
    "gpt_bigcode": ("GPTBigCode", OPENAI),
    "gpt_bigcode-multi-head": ("GPTBigCode", {**OPENAI, "multi_query": False}),
    "opt": ("OPT", OPT),
    "opt-post-norm": ("OPT", {**OPT, "do_layer_norm_before": False}),
    "llama": ("Llama", LLAMA),
    "llama-llama3": ("Llama", {**LLAMA, "rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": ("Llama", {**LLAMA, "rope_parameters": YARN}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**LLAMA, **QWEN_WINDOW}),
    "qwen3": ("Qwen3", {**LLAMA, **QWEN_WINDOW, "head_dim": 16}),
    "nanochat": ("NanoChat", {**LLAMA, "final_logit_softcapping": 2.0}),
    "gpt_oss": ("GptOss", GPT_OSS),
    "gemma3": ("Gemma3Text", GEMMA3),
}


def make_reference(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, the same every time, on plain attention."""
    torch.manual_seed(0)
    architecture, fields = REFERENCES[name]
    fields = copy.deepcopy({**fields, **overrides})  # configs write into the dicts that they are given
    config = getattr(transformers, f"{architecture}Config")(**fields)
    return randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


@torch.no_grad()
def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Give matrices weights large enough for sharp attention, and move what begins as 0 or 1: all of it matters."""
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms, biases, sinks
            parameter.add_(torch.randn_like(parameter) * 0.2)
        elif parameter.requires_grad:  # all but Marian's table of positions
            parameter.normal_(std=0.3)
    return model.eval()


def open_as_ours(reference: PreTrainedModel, folder: Path) -> GPTForCausalLM:
    """Save the reference and open it, as a user would; each weight must find its place."""
    reference.save_pretrained(folder)
    ours, report = GPTForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return ours.eval()


def gradients_of(reference: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Return the reference's gradients under our names: saved and opened as if they were weights."""
    carrier = copy.deepcopy(reference)
    for weight, source in zip(carrier.parameters(), reference.parameters(), strict=True):
        weight.data = source.grad
    return {name: weight.detach() for name, weight in open_as_ours(carrier, folder).named_parameters()}


@dataclass
class Pair:
    """The same weights in our model and in the reference's."""

    ours: GPTForCausalLM
    reference: PreTrainedModel

    def __iter__(self):
        return iter((self.ours, self.reference))


def make_pair(name: str, folder: Path, **overrides: Any) -> Pair:
    """Build a reference and open it as ours."""
    reference = make_reference(name, **overrides)
    return Pair(open_as_ours(reference, folder), reference)


def make_batch(padding: str | None = None, rows: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    """Return ids and, for padded rows, their mask and positions."""
    ids = torch.randint(4, VOCABULARY, (rows, length))
    if padding is None:
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    for row, missing in enumerate(range(0, rows * 3, 3)):
        mask[row, slice(0, missing) if padding == "left" else slice(length - missing, length)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "position_ids": positions}


def real_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return where there is a token and no padding, (B, T)."""
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the tokens that a token predicts; what padding says is of no account."""
    real = real_tokens(batch)
    return batch["input_ids"].masked_fill(~(real & real.roll(1, dims=1)), -100)


def losses_and_gradients(pair: Pair, batch: dict[str, torch.Tensor], **options: Any) -> list[Any]:
    """Return both outputs, with gradients left in the models."""
    outputs = []
    for model in pair:
        model.zero_grad()
        outputs.append(model(**batch, labels=labels_of(batch), **options))
        outputs[-1].loss.backward()
    return outputs


def assert_same_gradients(pair: Pair, folder: Path) -> None:
    """Compare what is left in the models: for each parameter, and none may be next to nothing."""
    theirs = gradients_of(pair.reference, folder)
    for name, parameter in pair.ours.named_parameters():
        close(parameter.grad, theirs.pop(name), name)
        # adding the same vector to all keys of a head cancels in the softmax, unless they are then rotated
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 1e-3, name
    assert not theirs


def close(a: torch.Tensor, b: torch.Tensor, name: str = "") -> None:
    """Assert that two tensors are the same, up to rounding."""
    torch.testing.assert_close(a, b, **TOLERANCE, msg=lambda message: f"{name}: {message}")
