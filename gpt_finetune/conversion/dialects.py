"""The dialects: how transformers spells each architecture that a GPT can express, as tables.

A new dialect is one entry of `DIALECTS`; nothing else knows its name. Whether a model can be written in a dialect is
not in the tables: it can if what is written reads back as the same `GPTConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming, WeightTransform


def _nothing(config: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Dialect:
    """One architecture of transformers in terms of ours.

    Args:
        fields: Our config field -> theirs.
        constants: Our fields that the architecture fixes.
        requires: Their fields of which GPTConfig can express one value only, with that value.
        synonyms: Our field -> their spelling of a value -> ours; the first spelling is the one written.
        read: Our fields that need more than one of theirs, from their config; replaces what `fields` gave.
        write: The way back: their fields, from our config.
        renames: Their part of a weight's name -> ours, whole words, applied in this order.
        transposed: Our layers whose matrix they keep as (in, out).
        fused: Their layer, (in, out) -> our layers that it stacks, of equal size.
        heads: A head of ours -> renames for it alone, as in `renames`.
        ignored: Patterns of weights, in our names but for what has none, that hold nothing learned.
    """

    fields: Mapping[str, str]
    constants: Mapping[str, Any]
    requires: Mapping[str, Any] = field(default_factory=dict)
    synonyms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    read: Callable[[Any], dict[str, Any]] = _nothing
    write: Callable[[Any], dict[str, Any]] = _nothing
    renames: Mapping[str, str] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def weights(self, model_class: type, prefix: str = "transformer") -> list[WeightTransform]:
        """Return what turns their checkpoint into ours while transformers loads it; each step can be reversed.

        Renaming comes first, so `transposed` speaks of our names and `fused` of theirs, with no rename in common.

        Args:
            model_class: The class of ours that is loaded or exported.
            prefix: What their class calls its base model; some call it as we do. While loading, a name that does not
                occur does no harm.
        """
        renames = {prefix: "model", **self.renames, **self.heads.get(model_class.__name__, {})}
        steps: list[WeightTransform] = [
            WeightRenaming(rf"(?<!\w){re.escape(theirs)}", rf"(?<!\w){re.escape(ours)}")
            for theirs, ours in renames.items()
        ]
        for layer in self.transposed:
            steps.append(WeightConverter(f"{layer}.weight", f"{layer}.weight", [Transpose(0, 1)]))
        for theirs, ours in self.fused.items():
            weights, biases = ([f"{layer}.{kind}" for layer in ours] for kind in ("weight", "bias"))
            steps.append(WeightConverter(f"{theirs}.weight", weights, [Transpose(0, 1), Chunk(0)]))
            steps.append(WeightConverter(f"{theirs}.bias", biases, [Chunk(0)]))
        return steps


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_COMMON = _same(
    "vocab_size", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"
)

# transformers' activations by the function that they compute
_ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}

# ------------------------------------------------------------------------------------------- OpenAI's, 2018 and 2019

_OPENAI_FIELDS = {
    **_COMMON,
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
}
_OPENAI_RENAMES = {
    "h": "layers",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_OPENAI_LAYERS: dict[str, Any] = {
    "transposed": ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    "fused": {"attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    "ignored": (r"\.attn\.(masked_)?bias$",),  # causal masks, which early releases stored as weights
}


def _gpt2_inner_size(config: Any) -> dict[str, Any]:
    """None stands for four times the width, and that is how GPT-2's own configs write it."""
    return {"n_inner": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size}


# ------------------------------------------------------------------------------------------------- Llama and its kin

_LLAMA_FIELDS = {
    **_COMMON,
    **_same(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rope_parameters",
        "attention_dropout",
        "use_cache",
    ),
    "norm_eps": "rms_norm_eps",
}
_LLAMA_CONSTANTS = {
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "block_type": "pre_norm",
    "gated_mlp": True,
    "scale_residual_init": False,
}


def _mistral_layers(config: Any) -> dict[str, Any]:
    """Every layer slides, or none does."""
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return {"layer_types": [kind] * config.num_hidden_layers}


def _qwen3_window(config: Any) -> dict[str, Any]:
    """A window that no layer uses is no window."""
    slides = "sliding_attention" in config.layer_types
    return {"sliding_window": config.sliding_window if slides else None}


# In the order in which an export tries them.
DIALECTS: dict[str, Dialect] = {
    "gpt2": Dialect(
        fields={
            **_OPENAI_FIELDS,
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
            "use_cache": "use_cache",
        },
        constants={"scale_residual_init": True},
        requires={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        synonyms={"hidden_act": _ACTIVATIONS},
        write=_gpt2_inner_size,
        renames={
            **_OPENAI_RENAMES,
            "wte": "embed_tokens",
            "wpe": "embed_positions",
            "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm",
            "ln_f": "norm",
        },
        heads={"GPTForTokenClassification": {"classifier": "score"}},
        **_OPENAI_LAYERS,
    ),
    "openai-gpt": Dialect(
        fields={**_OPENAI_FIELDS, "hidden_act": "afn"},
        constants={"block_type": "post_norm", "scale_residual_init": False},
        # what this architecture calls gelu is the tanh form
        synonyms={"hidden_act": {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}},
        renames={
            **_OPENAI_RENAMES,
            "tokens_embed": "embed_tokens",
            "positions_embed": "embed_positions",
            "ln_1": "post_attention_layernorm",
            "ln_2": "post_feedforward_layernorm",
        },
        **_OPENAI_LAYERS,
    ),
    "llama": Dialect(
        fields={**_LLAMA_FIELDS, **_same("attention_bias", "mlp_bias")},
        constants=_LLAMA_CONSTANTS,
        synonyms={"hidden_act": _ACTIVATIONS},
    ),
    "mistral": Dialect(
        fields={**_LLAMA_FIELDS, **_same("sliding_window")},
        constants={**_LLAMA_CONSTANTS, "attention_bias": False, "mlp_bias": False},
        synonyms={"hidden_act": _ACTIVATIONS},
        read=_mistral_layers,
    ),
    "qwen3": Dialect(
        fields={**_LLAMA_FIELDS, **_same("attention_bias", "layer_types", "sliding_window")},
        constants={**_LLAMA_CONSTANTS, "qk_norm": True, "mlp_bias": False},
        synonyms={"hidden_act": _ACTIVATIONS},
        read=_qwen3_window,
        write=lambda config: {"use_sliding_window": config.sliding_window is not None},
    ),
}
