"""The blocks of a GPT: how attention and MLP meet the residual stream; each choice a class in one table.

Shapes: B batch, T tokens, D hidden size.
"""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_gpt import GPTCrossAttention, make_attention
from .configuration_gpt import GPTConfig
from .layers_gpt import make_mlp, make_norm


class GPTBlock(GradientCheckpointingLayer):
    """Attention and MLP around one residual stream; subclasses say how they meet it."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = make_attention(config, layer_idx)
        self.mlp = make_mlp(config)
        if config.add_cross_attention:
            self.cross_attn = GPTCrossAttention(config, layer_idx)
            self.cross_attention_layernorm = make_norm(config, config.hidden_size)


class PreNormBlock(GPTBlock):
    """x + f(norm(x)), twice (GPT-2, section 2.3)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PostNormBlock(GPTBlock):
    """norm(x + f(x)), twice (GPT-1, and the 2017 Transformer)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        self.post_feedforward_layernorm = make_norm(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        hidden_states = self.post_attention_layernorm(hidden_states + self.self_attn(hidden_states, **kwargs)[0])
        return self.post_feedforward_layernorm(hidden_states + self.mlp(hidden_states))


class SandwichNormBlock(PostNormBlock):
    """x + norm2(f(norm1(x))), twice (Ding et al. 2021, arXiv:2105.13290 section 2.4; Gemma 2, arXiv:2408.00118)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.pre_feedforward_layernorm = make_norm(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        attended = self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        transformed = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        return hidden_states + self.post_feedforward_layernorm(transformed)


class ParallelBlock(PreNormBlock):
    """x + attention(norm1(x)) + MLP(norm2(x)) (GPT-NeoX, arXiv:2204.06745 section 2.1)."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        attended = self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))


class SharedNormParallelBlock(GPTBlock):
    """x + attention(norm(x)) + MLP(norm(x)) (GPT-J, Wang and Komatsuzaki 2021)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = make_norm(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        normed = self.input_layernorm(hidden_states)
        return hidden_states + self.self_attn(normed, **kwargs)[0] + self.mlp(normed)


class PreNormCrossBlock(PreNormBlock):
    """x + f(norm(x)), thrice: the second looks at an encoder's states."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        own = self_attention_arguments(kwargs)
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **own)[0]
        hidden_states = hidden_states + self.cross_attn(self.cross_attention_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PostNormCrossBlock(PostNormBlock):
    """norm(x + f(x)), thrice: the second looks at an encoder's states (arXiv:1706.03762 figure 1, right)."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        own = self_attention_arguments(kwargs)
        hidden_states = self.post_attention_layernorm(hidden_states + self.self_attn(hidden_states, **own)[0])
        hidden_states = self.cross_attention_layernorm(hidden_states + self.cross_attn(hidden_states, **kwargs)[0])
        return self.post_feedforward_layernorm(hidden_states + self.mlp(hidden_states))


def self_attention_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what self-attention takes of the arguments of a block with cross-attention: its own cache."""
    cache = kwargs["past_key_values"]
    return {**kwargs, "past_key_values": None if cache is None else cache.self_attention_cache}


# block_type, add_cross_attention -> the block
BLOCKS: dict[tuple[str, bool], type[GPTBlock]] = {
    ("pre_norm", False): PreNormBlock,
    ("pre_norm", True): PreNormCrossBlock,
    ("post_norm", False): PostNormBlock,
    ("post_norm", True): PostNormCrossBlock,
    ("sandwich_norm", False): SandwichNormBlock,
    ("parallel", False): ParallelBlock,
    ("parallel_shared_norm", False): SharedNormParallelBlock,
}
