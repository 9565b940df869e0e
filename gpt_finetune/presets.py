"""Named architectures: numbers, and the paper they come from. A preset is data; nothing else knows its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from gpt_finetune.model import GPTConfig


@dataclass(frozen=True)
class Preset:
    """One named architecture.

    Args:
        paper: Where its numbers come from.
        fields: What differs from `GPTConfig`'s defaults (which are GPT-2 small).
    """

    paper: str
    fields: dict[str, Any] = field(default_factory=dict)


_GPT2 = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2"
_GPT2_IDS = {"bos_token_id": 50256, "eos_token_id": 50256}
_GPT2_DROPOUT = {"embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1}
# Rotary positions, RMSNorm without biases, normalised queries and keys, squared ReLU: each with its paper in GPTConfig.
_MODERN = {
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "norm_eps": 1e-6,
    "qk_norm": True,
    "hidden_act": "relu2",
    "attention_bias": False,
    "mlp_bias": False,
}

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        "none: the smallest model that has every part, for tests",
        {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "quickstart": Preset(
        "none: modern options at a size that trains in minutes on two CPU cores",
        {
            **_MODERN,
            "vocab_size": 4096,
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "max_position_embeddings": 256,
        },
    ),
    "gpt2": Preset(_GPT2, {**_GPT2_IDS, **_GPT2_DROPOUT}),
    "gpt2-medium": Preset(
        _GPT2,
        {**_GPT2_IDS, **_GPT2_DROPOUT, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "gpt2-large": Preset(
        _GPT2,
        {**_GPT2_IDS, **_GPT2_DROPOUT, "hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    ),
    "gpt2-xl": Preset(
        _GPT2,
        {**_GPT2_IDS, **_GPT2_DROPOUT, "hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
    ),
    "modern-124m": Preset(
        "none: GPT-2 small's shape with the options that replaced its own since",
        {**_GPT2_IDS, **_MODERN},
    ),
}


def preset(name: str, **overrides: Any) -> GPTConfig:
    """Return the configuration of a named architecture.

    Args:
        name: A key of `PRESETS`.
        **overrides: Fields of `GPTConfig` that replace the preset's. What follows from a replaced field
            (`intermediate_size` from `hidden_size`, say) follows again.

    Raises:
        InputError: There is no preset of that name.
        ValueError: An override is unknown or does not fit (see `GPTConfig`).
    """
    if name not in PRESETS:
        raise InputError("preset", name, "there is no such preset", did_you_mean(name, PRESETS))
    from gpt_finetune.model import GPTConfig  # heavy: torch and transformers

    return GPTConfig(**{**PRESETS[name].fields, **overrides})


__all__ = ["PRESETS", "Preset", "preset"]
