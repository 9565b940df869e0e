"""What a GPT block does to each token by itself: norms, positions, MLPs, experts; each choice a class in a small table.

Shapes: B batch, T tokens, D hidden size, F MLP inner size, E experts, N = B * T tokens in a row, k experts a token.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations import use_experts_implementation

from .configuration_gpt import GPTConfig
from .dropout_gpt import GPTDropout
from .gelu_gpt import TanhGELU
from .norms_gpt import rms_norm

# --------------------------------------------------------------------------------------------------------- norms


class GPTRMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467), in the precision of what it normalises.

    Weights of another one, as under autocast, would widen the result, and the fused kernels refuse them.
    """

    def factors(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return what each coordinate is multiplied by, (D,); None is 1."""
        return None if self.weight is None else self.weight.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension; sums are in float32 whatever the precision."""
        return rms_norm(x, self.factors(x.dtype), self.normalized_shape[-1], self.eps, self.training)


class ZeroCenteredRMSNorm(GPTRMSNorm):
    """The same with weights kept less 1, so that they begin, and decay, at 0 (Gemma Team 2024, arXiv:2403.08295)."""

    def reset_parameters(self) -> None:
        """Let it begin as a norm without weights."""
        if self.weight is not None:
            init.zeros_(self.weight)

    def factors(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Add the 1 in float32, where it rounds nothing away."""
        return None if self.weight is None else (self.weight.float() + 1).to(dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": GPTRMSNorm,
    "zero_centered_rmsnorm": ZeroCenteredRMSNorm,
}


def make_norm(config: GPTConfig, size: int) -> nn.Module:
    """Return the configured norm over the last dimension, of this size."""
    return NORMS[config.norm_type](size, eps=config.norm_eps, elementwise_affine=config.norm_affine)


# ----------------------------------------------------------------------------------------- embeddings, positions


class ScaledEmbedding(nn.Embedding):
    """Token vectors times sqrt(D) (Vaswani et al. 2017, arXiv:1706.03762 section 3.4)."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up: (B, T) -> (B, T, D)."""
        return super().forward(input_ids) * self.embedding_dim**0.5


EMBEDDINGS: dict[bool, type[nn.Embedding]] = {False: nn.Embedding, True: ScaledEmbedding}


class LearnedPositions(nn.Embedding):
    """A trained vector a position (GPT-1, GPT-2, GPT-3), added to the token embeddings."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.max_position_embeddings + config.position_offset, config.hidden_size)
        self.offset = config.position_offset

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Add the positions' vectors: (B, T, D), (B or 1, T) -> (B, T, D)."""
        self._check(position_ids)
        return inputs_embeds + super().forward(position_ids + self.offset)

    def _check(self, position_ids: torch.Tensor) -> None:
        """Refuse positions beyond the table by name; on a GPU this would cost a synchronisation, so only on CPU."""
        if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or position_ids.numel() == 0:
            return
        last, limit = int(position_ids.max()), self.num_embeddings - self.offset
        if last >= limit:
            raise ValueError(
                f"position_ids reaches {last}, but max_position_embeddings is {limit} and learned positions end "
                "there: shorten the input to that many tokens"
            )


class SinusoidalPositions(nn.Module):
    """Fixed sine and cosine waves (Vaswani et al. 2017, arXiv:1706.03762 section 3.5)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dim = config.hidden_size
        self.inv_freq = nn.Buffer(self._frequencies(), persistent=False)

    def _frequencies(self) -> torch.Tensor:
        return 1.0 / 10_000.0 ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)

    def reset_parameters(self) -> None:
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


POSITIONS: dict[str, type[nn.Module]] = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": NoPositions,
    "none": NoPositions,
}

# ----------------------------------------------------------------------------------------------------------- MLP


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415 section 2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(1.702 * x)


class ReLUSquared(nn.Module):
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        return nn.functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": TanhGELU,
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "relu2": ReLUSquared,
    "silu": nn.SiLU,
}


class Gate(nn.Module):
    """act(g) * u, as in SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.act_fn = ACTIVATIONS[config.hidden_act]()

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Combine elementwise: (..., F), (..., F) -> (..., F)."""
        return self.act_fn(gate) * up


class ClampedGate(Gate):
    """act(min(g, c)) * (clamp(u, -c, c) + 1) (gpt-oss model card, arXiv:2508.10925 section 2.1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.limit = config.swiglu_limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Combine elementwise: (..., F), (..., F) -> (..., F)."""
        return super().forward(gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1)


def make_gate(config: GPTConfig) -> Gate:
    """Return the configured gate."""
    return (Gate if config.swiglu_limit is None else ClampedGate)(config)


def cast_once(x: torch.Tensor) -> torch.Tensor:
    """Return what autocast would make of `x` for a product, where several take it: one cast instead of one for each."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def residual_projection(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Return a linear layer marked as adding to the residual stream, which its initial weights heed.

    The mark is on the layer because transformers does not offer a module without parameters of its own, such as an
    attention layer, to `_init_weights` when a model's code travels with it.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.feeds_residual = True
    return layer


class GPTMLP(nn.Module):
    """Two layers: W2 act(W1 x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACTIVATIONS[config.hidden_act]()
        self.dropout = GPTDropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself: (B, T, D) -> (B, T, F) -> (B, T, D)."""
        return self.dropout(self.down_proj(self.act_fn(self.up_proj(hidden_states))))


class GPTGatedMLP(GPTMLP):
    """W2 gate(Wg x, W1 x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.act_fn = make_gate(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself: (B, T, D) -> (B, T, F) -> (B, T, D)."""
        hidden_states = cast_once(hidden_states)
        inner = self.act_fn(self.gate_proj(hidden_states), self.up_proj(hidden_states))
        return self.dropout(self.down_proj(inner))


# ------------------------------------------------------------------------------------------------------- experts


class GPTRouter(nn.Module):
    """Gives each token its k best experts (Shazeer et al. 2017, arXiv:1701.06538 section 2.1, without noise)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        bias = nn.Parameter(torch.empty(config.num_local_experts)) if config.mlp_bias else None
        self.register_parameter("bias", bias)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return all logits (N, E), the chosen experts' shares (N, k), which add up to 1, and their indices (N, k)."""
        logits = nn.functional.linear(hidden_states, self.weight, self.bias)
        best, indices = logits.topk(self.top_k, dim=-1)
        return logits, best.softmax(dim=-1), indices


@use_experts_implementation(is_concatenated=False, is_transposed=True, has_bias=True)
class GPTExperts(nn.Module):
    """E gated MLPs with stacked weights: gate and up projection in alternate columns, as gpt-oss stores them.

    transformers chooses how they are computed (`experts_implementation`): the loop below is the plain one.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_experts = config.num_local_experts
        sizes = {"gate_up_proj": (config.hidden_size, 2 * config.intermediate_size)}
        sizes["down_proj"] = (config.intermediate_size, config.hidden_size)
        for name, (inputs, outputs) in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, inputs, outputs)))
            bias = nn.Parameter(torch.empty(self.num_experts, outputs)) if config.mlp_bias else None
            self.register_parameter(f"{name}_bias", bias)
        self.gate = make_gate(config)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.gate(gate_up[..., ::2], gate_up[..., 1::2])

    def _project(self, name: str, x: torch.Tensor, expert: int) -> torch.Tensor:
        projected = x @ getattr(self, name)[expert]
        return projected + getattr(self, f"{name}_bias")[expert] if self.has_bias else projected

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Send each token through its experts and mix what they say: (N, D), (N, k), (N, k) -> (N, D)."""
        mixed = torch.zeros_like(hidden_states)
        for expert in indices.unique().tolist():
            if expert == self.num_experts:  # expert parallelism's mark of a token that another rank serves
                continue
            token, place = torch.where(indices == expert)
            inner = self._apply_gate(self._project("gate_up_proj", hidden_states[token], expert))
            said = self._project("down_proj", inner, expert) * shares[token, place, None]
            mixed.index_add_(0, token, said.to(mixed.dtype))
        return mixed


class GPTMixtureOfExperts(nn.Module):
    """A layer of experts in the place of the MLP (gpt-oss model card, arXiv:2508.10925 section 2.1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.router = GPTRouter(config)
        self.experts = GPTExperts(config)
        self.experts.has_bias = config.mlp_bias  # the decorator knows one value for all models
        self.dropout = GPTDropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself: (B, T, D) -> (B, T, D)."""
        tokens = hidden_states.flatten(0, 1)  # (N, D)
        _, shares, indices = self.router(tokens)
        return self.dropout(self.experts(tokens, indices, shares).view_as(hidden_states))


def make_mlp(config: GPTConfig) -> nn.Module:
    """Return the configured MLP."""
    if config.num_local_experts is not None:
        return GPTMixtureOfExperts(config)
    return (GPTGatedMLP if config.gated_mlp else GPTMLP)(config)
