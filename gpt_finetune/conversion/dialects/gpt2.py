"""GPT-1, GPT-2 and what descends from them: LayerNorm, and an MLP of two layers."""

from __future__ import annotations

import math
from typing import Any

from gpt_finetune.conversion.dialects.dialect import ACTIVATIONS, COMMON, QKV, Dialect, Writer, same
from gpt_finetune.conversion.dialects.operations import alternating

# ------------------------------------------------------------------------------------------------------------ config

_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_DROPOUTS = {
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
}
_GPT1_FIELDS = {**COMMON, **_SIZES, **_DROPOUTS, "norm_eps": "layer_norm_epsilon"}
_GPT2_FIELDS = {
    **_GPT1_FIELDS,
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "use_cache": "use_cache",
}
_SCALES = {True: None, False: 1.0}  # scale_attn_weights -> attention_scale


def _inner_size(name: str) -> Writer:
    """None stands for four times the width, and that is how these configs write it."""

    def write(config: Any) -> dict[str, Any]:
        return {name: None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size}

    return write


_LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}


def _read_attention_types(config: Any) -> dict[str, Any]:
    """`[[["global", "local"], 2]]` is these two layers, twice; a window that no layer uses is no window."""
    kinds = [kind for layers, times in config.attention_types for kind in layers * times]
    window = config.window_size if "local" in kinds else None
    return {"layer_types": [_LAYER_TYPES.get(kind, kind) for kind in kinds], "sliding_window": window}


def _write_attention_types(config: Any) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
    window = {} if config.sliding_window is None else {"window_size": config.sliding_window}
    return {"attention_types": [[[names[kind] for kind in config.layer_types], 1]], **window}


def _read_rotary_dim(config: Any) -> dict[str, Any]:
    """A number of coordinates is a share of the head, such that the model's rounding down gives that number."""
    size = config.n_embd // config.n_head
    share = config.rotary_dim / size
    if int(share * size) < config.rotary_dim:
        share = math.nextafter(share, 1.0)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": share}}


def _write_rotary_dim(config: Any) -> dict[str, Any]:
    share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    return {"rotary_dim": int(share * (config.hidden_size // config.num_attention_heads))}


def _write_share(config: Any) -> dict[str, Any]:
    """A quarter of a head turns, unless said otherwise."""
    rope = config.rope_parameters
    return {} if rope is None else {"rope_parameters": {"partial_rotary_factor": 1.0, **rope}}


# ----------------------------------------------------------------------------------------------------------- weights

_GPT1_RENAMES = {
    "h": "layers",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_GPT2_RENAMES = {
    **_GPT1_RENAMES,
    "wte": "embed_tokens",
    "wpe": "embed_positions",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "ln_f": "norm",
}
_CROSS_RENAMES = {
    "crossattention.q_attn": "cross_attn.q_proj",
    "crossattention.c_proj": "cross_attn.o_proj",
    "ln_cross_attn": "cross_attention_layernorm",
}
_CONVOLUTIONS = ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
_FUSED = {"attn.c_attn": QKV}
_CLASSIFIER = {"GPTForTokenClassification": {"classifier": "score"}}
# Causal masks and rotary frequencies, which early releases stored as weights.
_BUFFERS = (r"attn\.(masked_)?bias$", r"attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$")

# ---------------------------------------------------------------------------------------------------------- dialects

GPT2_FAMILY: dict[str, Dialect] = {
    "gpt2": Dialect(
        fields={**_GPT2_FIELDS, "attention_scale": "scale_attn_weights", **same("add_cross_attention")},
        constants={"scale_residual_init": True},
        requires={"scale_attn_by_inverse_layer_idx": False},
        synonyms={"hidden_act": ACTIVATIONS, "attention_scale": _SCALES},
        write=(_inner_size("n_inner"),),
        renames={**_GPT2_RENAMES, **_CROSS_RENAMES},
        heads=_CLASSIFIER,
        transposed=(*_CONVOLUTIONS, "cross_attn.q_proj", "cross_attn.o_proj"),
        fused={**_FUSED, "crossattention.c_attn": ("cross_attn.k_proj", "cross_attn.v_proj")},
        ignored=_BUFFERS,
    ),
    "openai-gpt": Dialect(
        fields={**_GPT1_FIELDS, "hidden_act": "afn"},
        constants={"block_type": "post_norm", "scale_residual_init": False},
        # what this architecture calls gelu is the tanh form
        synonyms={"hidden_act": {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}},
        renames={
            **_GPT1_RENAMES,
            "tokens_embed": "embed_tokens",
            "positions_embed": "embed_positions",
            "ln_1": "post_attention_layernorm",
            "ln_2": "post_feedforward_layernorm",
        },
        transposed=_CONVOLUTIONS,
        fused=_FUSED,
        ignored=_BUFFERS,
    ),
    "gpt_bigcode": Dialect(
        fields={**_GPT2_FIELDS, "attention_scale": "scale_attn_weights"},
        constants={"scale_residual_init": True},
        requires={"add_cross_attention": False},  # theirs cannot run
        synonyms={"hidden_act": ACTIVATIONS, "attention_scale": _SCALES},
        read=(lambda config: {"num_key_value_heads": 1 if config.multi_query else None},),
        write=(_inner_size("n_inner"), lambda config: {"multi_query": config.num_key_value_heads == 1}),
        renames=_GPT2_RENAMES,
        heads=_CLASSIFIER,
        grouped="attn.c_attn",
        ignored=_BUFFERS,
    ),
    "gpt_neo": Dialect(
        fields={
            **COMMON,
            **same("hidden_size", "max_position_embeddings", "intermediate_size", "attention_dropout", "use_cache"),
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "hidden_act": "activation_function",
            "norm_eps": "layer_norm_epsilon",
            "embedding_dropout": "embed_dropout",
            "residual_dropout": "resid_dropout",
        },
        constants={
            "attention_bias": False,
            "attention_output_bias": True,
            "attention_scale": 1.0,
            "scale_residual_init": False,
        },
        synonyms={"hidden_act": ACTIVATIONS},
        read=(_read_attention_types,),
        write=(_inner_size("intermediate_size"), _write_attention_types),
        renames={**_GPT2_RENAMES, "attn.attention": "self_attn", "out_proj": "o_proj"},
        heads=_CLASSIFIER,
        ignored=_BUFFERS,
    ),
    "gptj": Dialect(
        fields=_GPT2_FIELDS,
        constants={
            "block_type": "parallel_shared_norm",
            "position_embedding_type": "rotary",
            "attention_bias": False,
            "lm_head_bias": True,
            "scale_residual_init": False,
        },
        synonyms={"hidden_act": ACTIVATIONS},
        read=(_read_rotary_dim,),
        write=(_inner_size("n_inner"), _write_rotary_dim),
        renames={
            **_GPT2_RENAMES,
            "attn": "self_attn",
            "out_proj": "o_proj",
            "fc_in": "up_proj",
            "fc_out": "down_proj",
        },
        order=alternating,
        ignored=_BUFFERS,
    ),
    "gpt_neox": Dialect(
        fields={
            **COMMON,
            **same(
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "hidden_act",
                "max_position_embeddings",
                "rope_parameters",
                "attention_bias",
                "attention_dropout",
                "use_cache",
            ),
            "norm_eps": "layer_norm_eps",
            "block_type": "use_parallel_residual",
            "embedding_dropout": "hidden_dropout",
            "residual_dropout": "hidden_dropout",
        },
        constants={"position_embedding_type": "rotary", "scale_residual_init": False},
        synonyms={"hidden_act": ACTIVATIONS, "block_type": {True: "parallel", False: "pre_norm"}},
        write=(_write_share,),
        prefix="gpt_neox",
        on_disk={"embed_out": "lm_head"},
        renames={
            "embed_in": "embed_tokens",
            "final_layer_norm": "norm",
            "attention.dense": "self_attn.o_proj",
            "dense_h_to_4h": "up_proj",
            "dense_4h_to_h": "down_proj",
        },
        heads=_CLASSIFIER,
        grouped="attention.query_key_value",
        ignored=_BUFFERS,
    ),
    "opt": Dialect(
        fields={
            **COMMON,
            **same(
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "max_position_embeddings",
                "attention_dropout",
                "use_cache",
            ),
            "initializer_range": "init_std",
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "residual_dropout": "dropout",
            "norm_affine": "layer_norm_elementwise_affine",
            "block_type": "do_layer_norm_before",
            "attention_bias": "enable_bias",
            "mlp_bias": "enable_bias",
        },
        constants={"position_offset": 2, "norm_eps": 1e-5, "scale_residual_init": False},
        requires={
            "word_embed_proj_dim": lambda config: config.hidden_size,
            # a post-norm model has no final norm to remove
            "_remove_final_layer_norm": lambda config: (
                config._remove_final_layer_norm and not config.do_layer_norm_before
            ),
        },
        synonyms={"hidden_act": ACTIVATIONS, "block_type": {True: "pre_norm", False: "post_norm"}},
        renames={
            "decoder.embed_tokens": "embed_tokens",
            "decoder.embed_positions": "embed_positions",
            "decoder.final_layer_norm": "norm",
            "decoder.layers": "layers",
            "out_proj": "o_proj",
            "fc1": "mlp.up_proj",
            "fc2": "mlp.down_proj",
        },
        blocks={
            "pre_norm": {
                "self_attn_layer_norm": "input_layernorm",
                "final_layer_norm": "post_attention_layernorm",
            },
            "post_norm": {
                "self_attn_layer_norm": "post_attention_layernorm",
                "final_layer_norm": "post_feedforward_layernorm",
            },
        },
    ),
}
