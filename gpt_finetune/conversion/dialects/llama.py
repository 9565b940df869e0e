"""Llama and its kin, Gemma 3 among them: RMSNorm, rotary positions, grouped keys and values."""

from __future__ import annotations

from typing import Any

from gpt_finetune.conversion.dialects.dialect import ACTIVATIONS, COMMON, Dialect, same
from gpt_finetune.conversion.dialects.operations import swapped

_FIELDS = {
    **COMMON,
    **same(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rope_parameters",
        "attention_dropout",
        "use_cache",
    ),
    "norm_eps": "rms_norm_eps",
}
_CONSTANTS = {
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "block_type": "pre_norm",
    "gated_mlp": True,
    "mlp_bias": False,
    "scale_residual_init": False,
}
_ACTIVATIONS = {"hidden_act": ACTIVATIONS}


def _whole(rotation: dict[str, Any]) -> dict[str, Any]:
    """These turn whole heads, whatever `partial_rotary_factor` says."""
    rope = dict(rotation)
    if rope["rope_type"] != "proportional":  # there it does not mean how many coordinates turn
        rope.pop("partial_rotary_factor", None)
    return rope


def _whole_heads(config: Any) -> dict[str, Any]:
    return {"rope_parameters": _whole(config.rope_parameters)}


def _read_head_dim(config: Any) -> dict[str, Any]:
    """No field of these configs, but heeded where it is written."""
    return {"head_dim": getattr(config, "head_dim", None)}


def _write_head_dim(config: Any) -> dict[str, Any]:
    derived = config.head_dim * config.num_attention_heads == config.hidden_size
    return {} if derived else {"head_dim": config.head_dim}


def _same_window(config: Any) -> dict[str, Any]:
    """Every layer slides, or none does."""
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return {"layer_types": [kind] * config.num_hidden_layers}


def _used_window(config: Any) -> dict[str, Any]:
    """A window that no layer uses is no window."""
    slides = "sliding_attention" in config.layer_types
    return {"sliding_window": config.sliding_window if slides else None}


def _write_window(config: Any) -> dict[str, Any]:
    """These make a mask of it even where no layer uses it, so none is theirs by default."""
    return {} if config.sliding_window is None else {"sliding_window": config.sliding_window}


def _write_use_of_window(config: Any) -> dict[str, Any]:
    return {"use_sliding_window": config.sliding_window is not None}


def _read_rotations(config: Any) -> dict[str, Any]:
    """Of each layer type that occurs; what all turn by is said once."""
    found = {kind: _whole(config.rope_parameters[kind]) for kind in dict.fromkeys(config.layer_types)}
    first = next(iter(found.values()))
    return {"rope_parameters": first if all(rope == first for rope in found.values()) else found}


def _write_rotations(config: Any) -> dict[str, Any]:
    shared = config.rotations.get("all", {})
    return {"rope_parameters": {kind: dict(config.rotations.get(kind, shared)) for kind in config.layer_types}}


def _read_scale(config: Any) -> dict[str, Any]:
    usual = config.query_pre_attn_scalar == config.head_dim
    return {"attention_scale": None if usual else config.query_pre_attn_scalar**-0.5}


def _write_scale(config: Any) -> dict[str, Any]:
    usual = config.attention_scale is None
    return {"query_pre_attn_scalar": config.head_dim if usual else round(config.attention_scale**-2)}


LLAMA_FAMILY: dict[str, Dialect] = {
    "llama": Dialect(
        fields={**_FIELDS, **same("head_dim", "attention_bias", "mlp_bias")},
        constants={name: value for name, value in _CONSTANTS.items() if name != "mlp_bias"},
        synonyms=_ACTIVATIONS,
        read=(_whole_heads,),
    ),
    "mistral": Dialect(
        fields={**_FIELDS, **same("head_dim", "sliding_window")},
        constants={**_CONSTANTS, "attention_bias": False},
        synonyms=_ACTIVATIONS,
        read=(_whole_heads, _same_window),
    ),
    "qwen2": Dialect(
        fields={**_FIELDS, **same("layer_types", "sliding_window")},
        constants={**_CONSTANTS, "attention_bias": True, "attention_output_bias": False},
        synonyms=_ACTIVATIONS,
        read=(_whole_heads, _read_head_dim, _used_window),
        write=(_write_head_dim, _write_use_of_window),
    ),
    "qwen3": Dialect(
        fields={**_FIELDS, **same("head_dim", "attention_bias", "layer_types", "sliding_window")},
        constants={**_CONSTANTS, "qk_norm": True},
        synonyms=_ACTIVATIONS,
        read=(_whole_heads, _used_window),
        write=(_write_use_of_window,),
    ),
    "gpt_oss": Dialect(
        fields={
            **{ours: theirs for ours, theirs in _FIELDS.items() if ours != "hidden_act"},  # theirs has no effect
            **same(
                "head_dim",
                "attention_bias",
                "layer_types",
                "sliding_window",
                "num_local_experts",
                "num_experts_per_tok",
                "router_aux_loss_coef",
                "output_router_logits",
                "swiglu_limit",
            ),
        },
        constants={**_CONSTANTS, "hidden_act": "quick_gelu", "mlp_bias": True, "attention_sinks": True},
        requires={"swiglu_alpha": 1.702},
        read=(_whole_heads, _used_window),
    ),
    "gemma3_text": Dialect(
        fields={
            **_FIELDS,
            **same("head_dim", "attention_bias", "layer_types", "final_logit_softcapping"),
            "hidden_act": "hidden_activation",
        },
        constants={
            **_CONSTANTS,
            "norm_type": "zero_centered_rmsnorm",
            "block_type": "sandwich_norm",
            "qk_norm": True,
            "scale_embeddings": True,
        },
        requires={"attn_logit_softcapping": None, "use_bidirectional_attention": False},
        synonyms=_ACTIVATIONS,
        read=(_read_rotations, _read_scale, _used_window),
        write=(_write_rotations, _write_scale, _write_window),
    ),
    "nanochat": Dialect(
        fields={**_FIELDS, **same("attention_bias", "final_logit_softcapping")},
        constants={
            **_CONSTANTS,
            "embedding_norm": True,
            "norm_affine": False,
            "qk_norm": True,  # theirs comes after the rotation, which changes no length
            "gated_mlp": False,
            "scale_residual_init": True,
        },
        synonyms=_ACTIVATIONS,
        read=(_whole_heads, _read_head_dim),
        write=(_write_head_dim,),
        renames={"fc1": "up_proj", "fc2": "down_proj"},
        order=swapped,
    ),
}
