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


def _transformer(width: int, heads: int, dropout: float) -> Preset:
    """Return the 2017 Transformer's decoder as a language model.

    `add_cross_attention=True` makes it the pair's decoder, `is_causal=False` its encoder.
    """
    fields = {
        "vocab_size": 37000,  # the paper's English-German pieces, "about 37000"
        "hidden_size": width,
        "num_hidden_layers": 6,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,  # the waves have no end, and the paper names no length
        "position_embedding_type": "sinusoidal",
        "scale_embeddings": True,
        "block_type": "post_norm",
        "hidden_act": "relu",
        "attention_bias": False,  # equation 2 has biases, section 3.2.2 none
        "embedding_dropout": dropout,
        "residual_dropout": dropout,
        "initializer_range": width**-0.5,  # the paper is silent; tensor2tensor, its code, draws embeddings so
        "scale_residual_init": False,
    }
    return Preset("Vaswani et al. 2017, Attention Is All You Need (arXiv:1706.03762), table 3", fields)


def _gpt_oss(layers: int, experts: int) -> Preset:
    """Return one of gpt-oss's two sizes: they differ in depth and in the number of experts."""
    fields = {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "max_position_embeddings": 131072,
        "position_embedding_type": "rotary",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        "norm_type": "rmsnorm",
        "hidden_act": "quick_gelu",  # a SiLU with 1.702 in it, as in github.com/openai/gpt-oss
        "gated_mlp": True,
        "swiglu_limit": 7.0,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "attention_sinks": True,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "sliding_window": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 199998,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
    }
    return Preset(
        "OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card (arXiv:2508.10925), section 2 and table 1", fields
    )


def _gemma3(layers: int, width: int, inner: int) -> Preset:
    """Return one of Gemma 3's sizes that read text only: five layers of a window of 512, then one that sees all."""
    fields = {
        "vocab_size": 262144,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": inner,
        "max_position_embeddings": 32768,
        "position_embedding_type": "rotary",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        "scale_embeddings": True,
        "norm_type": "zero_centered_rmsnorm",
        "norm_eps": 1e-6,
        "block_type": "sandwich_norm",
        "qk_norm": True,
        "gated_mlp": True,
        "mlp_bias": False,
        "attention_bias": False,
        "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(layers)],
        "sliding_window": 512,
        "scale_residual_init": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return Preset("Gemma Team 2025, Gemma 3 Technical Report (arXiv:2503.19786), section 2", fields)


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


def _modern_large(layers: int, width: int, heads: int, groups: int) -> Preset:
    """Return a modern size with grouped queries and a long context, whose slow rotations are Llama 3's."""
    fields = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},  # arXiv:2407.21783 table 3
    }
    paper = "none: the modern options with grouped queries (arXiv:2305.13245)"
    return Preset(paper, {**_GPT2_IDS, **_MODERN, **fields})


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
    "transformer-base": _transformer(512, 8, dropout=0.1),
    "transformer-big": _transformer(1024, 16, dropout=0.3),
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
    "gpt-j-6b": Preset(
        "Wang and Komatsuzaki 2021, GPT-J-6B, its card on the Hub (EleutherAI/gpt-j-6b)",
        {
            **_GPT2_IDS,
            "vocab_size": 50400,  # padded: the tokenizer has 50257
            "hidden_size": 4096,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "max_position_embeddings": 2048,
            "position_embedding_type": "rotary",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "block_type": "parallel_shared_norm",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "lm_head_bias": True,
        },
    ),
    "gpt-neox-20b": Preset(
        "Black et al. 2022, GPT-NeoX-20B (arXiv:2204.06745), section 2.1 and table 1",
        {
            "vocab_size": 50432,
            "hidden_size": 6144,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "max_position_embeddings": 2048,
            "position_embedding_type": "rotary",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "block_type": "parallel",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "nanochat-d20": Preset(
        "Karpathy 2025, nanochat (github.com/karpathy/nanochat, nanochat/gpt.py as of October 2025), depth 20",
        {
            **_MODERN,
            "vocab_size": 65536,
            "hidden_size": 1280,
            "num_hidden_layers": 20,
            "num_attention_heads": 10,
            "max_position_embeddings": 2048,
            "embedding_norm": True,
            "norm_affine": False,
            "final_logit_softcapping": 15.0,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3-270m": _gemma3(18, 640, 2048),
    "gemma3-1b": _gemma3(26, 1152, 6912),
    # A ladder of our own. Up to 350m it has GPT-2's shapes, so that only the options differ. From 1b on, heads are 128
    # wide, as fused kernels like them best, and share keys and values: else one sequence of 8192 tokens would have a
    # cache of 1.3 GB beside 2 GB of weights. Depth and width of 3b are those of Llama 3.2's.
    "modern-124m": Preset(
        "none: GPT-2 small's shape with the options that replaced its own since",
        {**_GPT2_IDS, **_MODERN},
    ),
    "modern-350m": Preset(
        "none: GPT-2 medium's shape, likewise, and twice its context",
        {
            **_GPT2_IDS,
            **_MODERN,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "max_position_embeddings": 2048,
        },
    ),
    "modern-1b": _modern_large(20, 2048, heads=16, groups=4),
    "modern-3b": _modern_large(28, 3072, heads=24, groups=8),
    "modern-moe-6m": Preset(
        "none: experts (arXiv:1701.06538), kept in balance (arXiv:2101.03961), at a size for a laptop",
        {
            **_MODERN,
            "vocab_size": 4096,
            "hidden_size": 192,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "max_position_embeddings": 256,
            "hidden_act": "silu",
            "gated_mlp": True,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "output_router_logits": True,  # else nothing keeps all tokens from the same two
            "router_aux_loss_coef": 0.01,  # arXiv:2101.03961 section 2.2
        },
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
