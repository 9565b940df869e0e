"""How a GPT mixes tokens: rotary positions, causal attention, attention with sinks, cross-attention.

Shapes: B batch, T query tokens, S key tokens, D hidden size, H query heads, G key-value heads, K head size, R how many
of a head's coordinates turn.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .backends_gpt import BETTER, WITH_SINKS, eager_attention_forward
from .configuration_gpt import GPTConfig
from .dropout_gpt import GPTDropout
from .layers_gpt import cast_once, make_norm, residual_projection
from .rotation_gpt import turn

# ------------------------------------------------------------------------------------------------------ rotation


class GPTRotaryEmbedding(nn.Module):
    """Angles of rotary positions (Su et al. 2021, arXiv:2104.09864), with all of transformers' scalings.

    Args:
        config: The model's.
        rotation: Of `config.rotations`, the one to compute.
    """

    def __init__(self, config: GPTConfig, rotation: dict[str, Any]) -> None:
        super().__init__()
        self.config = config = copy.copy(config)  # transformers' functions look there for what to compute
        config.rope_parameters = rotation
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)  # (R/2,)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GPTConfig, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """Return theta^(-2i/R) for each pair i of coordinates, and no scaling of attention."""
        turned = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        exponent = torch.arange(0, turned, 2, dtype=torch.float32) / turned
        return 1.0 / config.rope_parameters["rope_theta"] ** exponent, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, each (B or 1, 1, T, R), in `x`'s dtype: one row serves all heads."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq.float()  # (B or 1, 1, T, R/2)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class GPTRotations(nn.ModuleDict):
    """The angles of each layer type: its own (Gemma 3, arXiv:2503.19786 section 2), the same for all, or none."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__({kind: GPTRotaryEmbedding(config, rotation) for kind, rotation in config.rotations.items()})
        self.layer_types = tuple(dict.fromkeys(config.layer_types))

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
        """Return cosines and sines by layer type, see `GPTRotaryEmbedding`; None for what does not rotate."""
        angles = {kind: rotation(x, position_ids) for kind, rotation in self.items()}
        return {kind: angles.get(kind, angles.get("all")) for kind in self.layer_types}


def rotate(x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn all coordinates, in pairs: (B, H, T, K) -> (B, H, T, K)."""
    return turn(x, *position_embeddings)


def rotate_part(x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn the first R of K coordinates and leave the others (GPT-J, GPT-NeoX)."""
    turned = position_embeddings[0].shape[-1]
    return torch.cat((rotate(x[..., :turned], position_embeddings), x[..., turned:]), dim=-1)


def keep(x: torch.Tensor, position_embeddings: Any) -> torch.Tensor:
    """Leave queries and keys as they are: the model does not rotate."""
    return x


def make_rotation(config: GPTConfig, layer_type: str) -> Callable[..., torch.Tensor]:
    """Return what a layer of a type does with queries and keys."""
    rotation = config.rotations.get(layer_type, config.rotations.get("all"))
    if rotation is None:
        return keep
    return rotate if rotation.get("partial_rotary_factor", 1.0) == 1 else rotate_part


# ----------------------------------------------------------------------------------------------------- attention


class GPTAttention(nn.Module):
    """Multi-head attention with grouped keys and values (arXiv:1706.03762, arXiv:2305.13245).

    Args:
        config: The model's.
        layer_idx: Which block it stands in.
        source_size: Width of what keys and values are made from; None means the residual stream's.
    """

    projects_one_source = True  # `project` may be replaced by what makes all three at once
    by_products = False  # whether to train by matrix products where they are faster, see `or_by_products`

    def __init__(self, config: GPTConfig, layer_idx: int, source_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.is_causal = config.is_causal
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        self.rotate = make_rotation(config, config.layer_types[layer_idx])

        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        source_size = source_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(source_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(source_size, key_size, bias=config.attention_bias)
        self.o_proj = residual_projection(query_size, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.dropout = GPTDropout(config.residual_dropout)

    def heads(self, projected: torch.Tensor) -> torch.Tensor:
        """Split the last dimension: (B, T, H * K) -> (B, T, H, K)."""
        return projected.view(*projected.shape[:-1], -1, self.head_dim)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Make queries, keys and values: (B, T, D) -> (B, T, H * K) and twice (B, T, G * K)."""
        return self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)

    def choose(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        """Return what computes attention, given transformers' function for it."""
        return BETTER.get(attend, attend)

    def merge(self, mixed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Join the heads, unless vLLM has, and project back: (B, T, H, K) or (B * T, H * K) -> (B, T, D)."""
        return self.dropout(self.o_proj(mixed.reshape(*shape[:-1], -1)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix tokens: (B, T, D) -> (B, T, D) and, where the backend has them, the weights (B, H, T, S)."""
        hidden_states = cast_once(hidden_states)
        query, key, value = self.project(hidden_states)
        query = self.q_norm(self.heads(query)).transpose(1, 2)  # (B, H, T, K)
        key = self.k_norm(self.heads(key)).transpose(1, 2)  # (B, G, T, K)
        value = self.heads(value).transpose(1, 2)  # (B, G, T, K)
        query, key = self.rotate(query, position_embeddings), self.rotate(key, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, K)
        # vLLM reads in this source that a layer takes its function from the table, and how it calls it
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attend = self.choose(attend)
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.merge(mixed, hidden_states.shape), weights


class GPTSinkAttention(GPTAttention):
    """Attention with a learned sink a head (gpt-oss model card, arXiv:2508.10925 section 2.2; arXiv:2309.17453)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))
        # asked in vain now rather than at the first token
        self.choose(ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward))

    def choose(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        """Return what computes attention with the sinks; not every function knows of them, and none may leave them out.

        They are bound here, for vLLM looks at how `forward` calls: it then gets as far as this error.
        """
        if attend not in WITH_SINKS:
            name = self.config._attn_implementation
            raise ValueError(f"attn_implementation={name!r} has no attention sinks: use eager, sdpa or flex_attention")
        return functools.partial(WITH_SINKS[attend], s_aux=self.sinks)


class GPTCrossAttention(GPTAttention):
    """Attention to an encoder's states (Vaswani et al. 2017, arXiv:1706.03762 section 3.2.3)."""

    projects_one_source = False

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, config.cross_attention_hidden_size)
        self.is_causal = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix the encoder's S states into each token: (B, T, D), (B, S, width) -> (B, T, D) and weights (B, H, T, S).

        Positions and mask of the tokens themselves play no part. Keys and values are computed once, and cached.
        """
        query = self.q_norm(self.heads(self.q_proj(hidden_states))).transpose(1, 2)  # (B, H, T, K)
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            key = self.k_norm(self.heads(self.k_proj(encoder_hidden_states))).transpose(1, 2)  # (B, G, S, K)
            value = self.heads(self.v_proj(encoder_hidden_states)).transpose(1, 2)  # (B, G, S, K)
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attend = self.choose(attend)
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attend(self, query, key, value, encoder_attention_mask, dropout=dropout, scaling=self.scaling)
        return self.merge(mixed, hidden_states.shape), weights


def make_attention(config: GPTConfig, layer_idx: int) -> GPTAttention:
    """Return the configured self-attention of a block."""
    return (GPTSinkAttention if config.attention_sinks else GPTAttention)(config, layer_idx)
