"""The parts of a GPT block, each choice a class in a small table: norms, positions, attention, MLP.

Shapes: B batch, T query tokens, S key tokens, D hidden size, H query heads, G key-value heads, K head size,
F MLP inner size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_gpt import GPTConfig

# --------------------------------------------------------------------------------------------------------- norms


class GPTRMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Show size and epsilon in the module's printout."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": GPTRMSNorm}


# ----------------------------------------------------------------------------------------------------- positions


class LearnedPositions(nn.Embedding):
    """A trained vector a position (GPT-1, GPT-2, GPT-3), added to the token embeddings."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.max_position_embeddings, config.hidden_size)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Add the positions' vectors: (B, T, D), (B or 1, T) -> (B, T, D)."""
        return inputs_embeds + super().forward(position_ids)


class SinusoidalPositions(nn.Module):
    """Fixed sine and cosine waves (Vaswani et al. 2017, arXiv:1706.03762 section 3.5)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dim = config.hidden_size
        self.inv_freq = nn.Buffer(self._frequencies(), persistent=False)

    def _frequencies(self) -> torch.Tensor:
        return 1.0 / 10_000.0 ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)

    def reset_buffers(self) -> None:
        """Recompute what is not stored, for a model that was built on the meta device."""
        init.copy_(self.inv_freq, self._frequencies())

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Add the waves: (B, T, D), (B or 1, T) -> (B, T, D); even columns sine, odd ones cosine."""
        angles = position_ids[..., None].float() * self.inv_freq.float()  # (B or 1, T, D/2)
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (B or 1, T, D)
        return inputs_embeds + waves.to(inputs_embeds.dtype)


class NoPositions(nn.Module):
    """Adds nothing: positions enter through rotation, or not at all."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings unchanged."""
        return inputs_embeds


class GPTRotaryEmbedding(nn.Module):
    """Angles of rotary positions (Su et al. 2021, arXiv:2104.09864), with all of transformers' scalings."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)  # (K/2,)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GPTConfig, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """Return theta^(-2i/K) for each pair i of coordinates, and no scaling of attention."""
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponent, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, each (B or 1, 1, T, K), in `x`'s dtype: one row serves all heads."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq.float()  # (B or 1, 1, T, K/2)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class NoRotation(nn.Module):
    """Stands where `GPTRotaryEmbedding` would: there are no angles."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> None:
        """Return nothing to rotate by."""
        return


POSITIONS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "learned": (LearnedPositions, NoRotation),
    "sinusoidal": (SinusoidalPositions, NoRotation),
    "rotary": (NoPositions, GPTRotaryEmbedding),
    "none": (NoPositions, NoRotation),
}


def rotate(x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn each pair (i, i + K/2) of coordinates by its angle: (B, H, T, K) -> (B, H, T, K)."""
    cos, sin = position_embeddings
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


def keep(x: torch.Tensor, position_embeddings: Any) -> torch.Tensor:
    """Leave queries and keys as they are: the model does not rotate."""
    return x


# ----------------------------------------------------------------------------------------------------- attention


def residual_projection(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Return a linear layer marked as adding to the residual stream, which its initial weights heed.

    The mark is on the layer because transformers does not offer a module without parameters of its own, such as
    `GPTAttention`, to `_init_weights` when a model's code travels with it.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.feeds_residual = True
    return layer


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as written in the paper: softmax(Q K^T / sqrt(K)) V, with its weights.

    Args:
        module: The attention layer, read for its group size and mode.
        query: (B, H, T, K).
        key: (B, G, S, K).
        value: (B, G, S, K).
        attention_mask: Added to the scores, (B or 1, 1, T, S), or None.
        scaling: Factor of the scores.
        dropout: Probability of dropping an attention weight.
        **kwargs: Arguments of other backends.

    Returns:
        The mixed values (B, T, H, K) and the weights (B, H, T, S).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class GPTAttention(nn.Module):
    """Causal multi-head attention with grouped keys and values (arXiv:1706.03762, arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        self.rotate = rotate if config.position_embedding_type == "rotary" else keep

        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = residual_projection(query_size, config.hidden_size, bias=config.attention_bias)
        head_norm = NORMS[config.norm_type] if config.qk_norm else nn.Identity
        self.q_norm = head_norm(config.head_dim, eps=config.norm_eps)
        self.k_norm = head_norm(config.head_dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix tokens: (B, T, D) -> (B, T, D) and, where the backend has them, the weights (B, H, T, S)."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)  # (B, H, T, K)
        key = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)  # (B, G, T, K)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)  # (B, G, T, K)
        query, key = self.rotate(query, position_embeddings), self.rotate(key, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, K)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
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
        mixed = mixed.reshape(*hidden_states.shape[:-1], -1).contiguous()  # (B, T, H * K)
        return self.dropout(self.o_proj(mixed)), weights


# ----------------------------------------------------------------------------------------------------------- MLP


class ReLUSquared(nn.Module):
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        return nn.functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "relu2": ReLUSquared,
    "silu": nn.SiLU,
}


class GPTMLP(nn.Module):
    """Two layers: W2 act(W1 x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACTIVATIONS[config.hidden_act]()
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself: (B, T, D) -> (B, T, F) -> (B, T, D)."""
        return self.dropout(self.down_proj(self.act_fn(self.up_proj(hidden_states))))


class GPTGatedMLP(GPTMLP):
    """W2 (act(Wg x) * W1 x), as in SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself: (B, T, D) -> (B, T, F) -> (B, T, D)."""
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.dropout(self.down_proj(gated))


MLPS: dict[bool, type[GPTMLP]] = {False: GPTMLP, True: GPTGatedMLP}
