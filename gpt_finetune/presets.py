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
_GPT3 = "Brown et al. 2020, Language Models are Few-Shot Learners (arXiv:2005.14165), table 2.1"


def _gpt3(layers: int, width: int, heads: int, head_dim: int, paper: str = _GPT3) -> Preset:
    """Return one of GPT-3's eight sizes: GPT-2's layout, every other layer locally banded (section 2.1)."""
    fields = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": 2048,
        "layer_types": ["full_attention", "sliding_attention"] * (layers // 2),
        "sliding_window": 256,  # the paper gives no width; this is GPT-Neo's
    }
    return Preset(paper, {**_GPT2_IDS, **fields})


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
    "gpt1": Preset(
        "Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1",
        {
            **_GPT2_DROPOUT,
            "vocab_size": 40478,
            "max_position_embeddings": 512,
            "block_type": "post_norm",
            "scale_residual_init": False,
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
    "gpt3-small": _gpt3(12, 768, 12, 64),
    "gpt3-medium": _gpt3(24, 1024, 16, 64),
    "gpt3-large": _gpt3(24, 1536, 16, 96),
    # The table says 24 heads of 128 at width 2048, which would make 1.5 B parameters; its own count fits 16 heads.
    "gpt3-xl": _gpt3(24, 2048, 16, 128, f"{_GPT3}, heads corrected to fit its parameter count"),
    "gpt3-2.7b": _gpt3(32, 2560, 32, 80),
    "gpt3-6.7b": _gpt3(32, 4096, 32, 128),
    "gpt3-13b": _gpt3(40, 5140, 40, 128),
    "gpt3-175b": _gpt3(96, 12288, 96, 128),
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
