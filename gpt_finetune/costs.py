"""What an architecture costs, from its configuration alone: parameters, FLOPs, cache, memory. No weight is allocated.

Symbols: D hidden size, H query heads, G key-value heads, K head size, F MLP inner size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gpt_finetune.errors import InputError
from gpt_finetune.model import GPTConfig
from gpt_finetune.model.layers_gpt import GPTExperts, GPTRouter
from gpt_finetune.model.loss_gpt import rows_at_once
from gpt_finetune.model.modeling_gpt import GPTWithLMHead
from gpt_finetune.report.summary import count, size

# A word of a parameter's name, read from its end -> the part of the model that the parameter belongs to.
_PARTS = {
    "embed_tokens": "token embeddings",
    "embed_positions": "position embeddings",
    "self_attn": "attention",
    "cross_attn": "cross-attention",
    "router": "router",
    "experts": "experts",
    "mlp": "MLP",
    "lm_head": "output head",
}


@dataclass(frozen=True)
class Costs:
    """What one architecture costs; memory in bytes.

    Args:
        context_length: Tokens of a sequence.
        batch_size: Sequences computed at once.
        dtype: Precision of computing, and of weights and cache when serving.
        train_dtype: Precision of weights, gradients and moments in training.
        parameters: By part of the model; a matrix that is shared counts once, where it stands first.
        active: Parameters that one token computes with: the output head, and of the experts those it takes, but no
            table in which it only looks up a row. That is how gpt-oss's are published (arXiv:2508.10925 table 1).
        forward_flops: Floating-point operations of a token's forward pass; training takes `training_flops`.
        attention_flops: Those of them that attention spends on the context, with none of its weights.
        training_flops: Floating-point operations of a token's forward and backward pass.
        cache_per_token: Keys and values of one token, as long as no window is full.
        cache: Keys and values of one sequence as long as the context; a sliding layer keeps a token less than it sees.
        training: What training takes, by what holds it; activations are an estimate (see `estimate_activations`).
        checkpointed: What training takes with gradient checkpointing, likewise; copies of weights then stay.
        serving: What generating takes, by what holds it.
    """

    context_length: int
    batch_size: int
    dtype: str
    train_dtype: str
    parameters: dict[str, int]
    active: int
    forward_flops: int
    attention_flops: int
    training_flops: int
    cache_per_token: int
    cache: int
    training: dict[str, int]
    checkpointed: dict[str, int]
    serving: dict[str, int]


def estimate(
    config: GPTConfig,
    context_length: int | None = None,
    batch_size: int = 1,
    dtype: str = "bfloat16",
    train_dtype: str = "float32",
    recompute: bool = True,
) -> Costs:
    """Return what an architecture costs.

    Args:
        config: The architecture; with cross-attention, the encoder's text is taken to be as long as the context.
        context_length: Tokens of a sequence; None means as many as the model has positions.
        batch_size: Sequences computed at once.
        dtype: Precision of computing, and of weights and cache when serving.
        train_dtype: Precision of the weights that are trained, their gradients and AdamW's two moments; where it is
            not `dtype`, matrices are copied to that for computing, as autocast does.
        recompute: Training keeps no outputs of norms, activations and gates, nor copies, as recipes do
            (`train.recompute`).

    Raises:
        InputError: A length is not positive, or longer than a table of learned positions.
    """
    context_length = config.max_position_embeddings if context_length is None else context_length
    for name, value in {"context_length": context_length, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(name, value, "there is nothing to compute", "Give at least 1")
    if config.position_embedding_type == "learned" and context_length > config.max_position_embeddings:
        problem = f"learned positions end at {config.max_position_embeddings}"
        raise InputError("context_length", context_length, problem, "Lower it, or raise max_position_embeddings")
    with torch.device("meta"):
        model = GPTWithLMHead(config)
    width, train_width = (getattr(torch, name).itemsize for name in (dtype, train_dtype))
    parameters = parameters_by_part(model)
    total = sum(parameters.values())
    tokens = batch_size * context_length
    cache = width * cached_numbers(config, context_length)

    def training(checkpointing: bool) -> dict[str, int]:
        again = recompute and not checkpointing
        parts = {
            "weights": train_width * total,
            "copies to compute with": 0 if width == train_width else width * _copied(model, again),
            "gradients": train_width * total,
            "AdamW's moments": 2 * train_width * total,
            "activations": tokens * estimate_activations(config, width, train_width, checkpointing, again),
            "logits": logits_at_once(config, tokens, width),
        }
        return {name: size for name, size in parts.items() if size}

    return Costs(
        context_length=context_length,
        batch_size=batch_size,
        dtype=dtype,
        train_dtype=train_dtype,
        parameters=parameters,
        active=_active(parameters, config),
        forward_flops=forward_flops(model, context_length),
        attention_flops=_attention_flops(config, context_length),
        training_flops=flops_per_token(model, context_length),
        cache_per_token=width * cached_numbers(config, 1),
        cache=cache,
        training=training(checkpointing=False),
        checkpointed=training(checkpointing=True),
        serving={"weights": width * total, "cache": batch_size * cache},
    )


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Count a model's parameters by part; each name of `_PARTS`, and every norm, is one."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        *modules, _ = name.split(".")
        part = "norms" if modules[-1].endswith("norm") else next(_PARTS[m] for m in reversed(modules) if m in _PARTS)
        found[part] += parameter.numel()
    order = [*_PARTS.values(), "norms"]
    return {part: found[part] for part in order if part in found}


def _active(parameters: dict[str, int], config: PreTrainedConfig) -> int:
    looked_up = parameters.get("position embeddings", 0)
    if not config.tie_word_embeddings:
        looked_up += parameters["token embeddings"]
    idle = 0
    if (experts := config.num_local_experts) is not None:
        idle = parameters["experts"] * (experts - config.num_experts_per_tok) // experts
    return sum(parameters.values()) - looked_up - idle


# --------------------------------------------------------------------------------------------------------- FLOPs


def flops_per_token(model: PreTrainedModel, context_length: int) -> int:
    """Return the floating-point operations of one token's forward and backward pass.

    The backward pass costs twice as much: gradients of what went in, and of the weights. A frozen weight has none; what
    goes into the layers below the first trained one needs none either, but is counted.
    """
    return 3 * forward_flops(model, context_length) - 2 * _multiplied(model, frozen=True)


def forward_flops(model: PreTrainedModel, context_length: int) -> int:
    """Return the floating-point operations of one token's forward pass: 2 a weight of every product, and attention's.

    The output head's weights are among them; embeddings and experts not taken are not. Attention takes 4 H K for each
    token seen, in each layer: all of the context, or the window where that is shorter. That is the last token's share;
    as is the custom, it stands for those before, which see less (PaLM, arXiv:2204.02311, appendix B).
    """
    return 2 * _multiplied(model) + _attention_flops(model.config, context_length)


def _multiplied(model: nn.Module, all_experts: bool = False, frozen: bool = False) -> int:
    """Count the weights of matrix products, or only those that are not trained."""
    weights = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | GPTRouter):
            # by its sizes where it has them: a quantised weight packs several numbers into one
            size = module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()
            weights += size * (not (frozen and module.weight.requires_grad))
        elif isinstance(module, GPTExperts):
            taken = module.num_experts if all_experts else model.config.num_experts_per_tok
            stacks = [p for p in (module.gate_up_proj, module.down_proj) if not (frozen and p.requires_grad)]
            weights += sum(stack.numel() for stack in stacks) * taken // module.num_experts
    return weights


def _copied(model: nn.Module, recompute: bool) -> int:
    """Count the weights that training copies to another precision, and holds at a time: all, or the largest ones."""
    if not recompute:
        return _multiplied(model, all_experts=True)
    products = (module for module in model.modules() if isinstance(module, nn.Linear | GPTRouter | GPTExperts))
    return max(_multiplied(module, all_experts=True) for module in products)


def _attention_flops(config: PreTrainedConfig, context_length: int) -> int:
    """Return 4 H K for each token that the last one sees: 2 to score it, 2 to mix it in."""
    seen = sum(min(context_length, window or context_length) for window in _windows(config))
    return 4 * config.num_attention_heads * config.head_dim * seen


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Return what each attention layer sees: None for everything. Cross-attention is a layer of its own."""
    layer_types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in layer_types]
    return windows * 2 if getattr(config, "add_cross_attention", False) else windows


# -------------------------------------------------------------------------------------------------------- memory


def cached_numbers(config: PreTrainedConfig, context_length: int) -> int:
    """Return how many numbers the cache of one sequence holds: 2 G K a layer and token."""
    # the newest token is its own key: between steps, a window keeps one less than it sees
    kept = sum(context_length if window is None else min(context_length, window - 1) for window in _windows(config))
    return 2 * config.num_key_value_heads * config.head_dim * kept


def estimate_activations(
    config: PreTrainedConfig, width: int, stream_width: int, checkpointing: bool = False, recompute: bool = False
) -> int:
    """Estimate the bytes that a token's forward pass leaves for the backward pass.

    Args:
        config: The architecture.
        width: Bytes of a computed number.
        stream_width: Bytes of a number in the residual stream.
        checkpointing: Layers keep their input only, and are computed again one by one.
        recompute: See `activations_by_part`.
    """
    layer, head = activations_by_part(config, width, stream_width, recompute)
    if checkpointing:
        return config.num_hidden_layers * config.hidden_size * stream_width + layer + head
    return config.num_hidden_layers * layer + head


def activations_by_part(
    config: PreTrainedConfig, width: int, stream_width: int, recompute: bool = False
) -> tuple[int, int]:
    """Estimate the bytes that a token's forward pass leaves in one layer, and at the end of the model.

    A layer keeps the inputs and outputs of its two norms, queries, keys, values and what attention made of them (a
    fused kernel's; the plain one keeps all scores too), and the MLP's inner values. At the end come the last norm and
    what the loss has for it as a gradient; for logits see `logits_at_once`. Dropout's masks and what an allocator
    wastes are not counted. In the manner of Korthikanti et al. 2022 (arXiv:2205.05198) section 4, recounted for a fused
    kernel.

    Args:
        config: The architecture.
        width: Bytes of a computed number.
        stream_width: Bytes of a number in the residual stream.
        recompute: Outputs of norms, activations and gates are not kept; of ReLUs they are, instead of their inputs.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    # up, act | gate, up, act, product | these, and what is clamped, shifted or in the sigmoid
    kept = (7 if config.swiglu_limit else 4) if config.gated_mlp else 2
    normed = 2 * hidden
    if recompute:
        kept -= 2 if config.gated_mlp else not config.hidden_act.startswith("relu")
        normed = 0
    mlp = kept * inner
    if config.num_local_experts is not None:
        mlp = config.num_experts_per_tok * (mlp + 2 * hidden)  # each expert's own input and output, too
    attention = heads * (3 if config.qk_norm else 2)
    layer = 2 * hidden * stream_width + (normed + attention + mlp) * width
    if config.block_type == "sandwich_norm":
        layer += 2 * hidden * width  # what the norms behind attention and MLP get
    if config.add_cross_attention:
        layer += hidden * stream_width + (normed // 2 + attention) * width
    return layer, 2 * hidden * (stream_width + width)


def logits_at_once(config: PreTrainedConfig, tokens: int, width: int) -> int:
    """Return the bytes of the logits that training holds at a time, in what products take.

    Args:
        config: The architecture.
        tokens: Of a forward pass.
        width: Bytes of a computed number.
    """
    pieces = min(tokens, rows_at_once(config.vocab_size, torch.float32 if width == 4 else torch.bfloat16))
    return pieces * config.vocab_size * width


# --------------------------------------------------------------------------------------------------------- words


def tables(config: GPTConfig, costs: Costs) -> dict[str, list[tuple[str, ...]]]:
    """Return costs as a person reads them: rows of name, value and note under each title."""
    total = sum(costs.parameters.values())
    trained, served = sum(costs.training.values()), sum(costs.serving.values())
    notes = {"copies to compute with": costs.dtype, "activations": f"{costs.dtype}, estimated"}
    checkpointed = sum(costs.checkpointed.values())
    return {
        "Shape": list(_shape(config).items()),
        "Parameters": [
            *((part, count(n), f"{n / total:.1%}") for part, n in costs.parameters.items()),
            ("total", count(total), "a shared matrix counts once"),
            ("active", count(costs.active), "no look-up tables, no idle experts"),
        ],
        f"FLOPs of a token that sees {costs.context_length:,}": [
            ("forward", count(costs.forward_flops), "2 x matrix weights + the next line"),
            ("of it, attention to these", count(costs.attention_flops), "4 x heads x head size x tokens seen"),
            ("forward and backward", count(costs.training_flops), "3 x forward"),
        ],
        f"Cache in {costs.dtype}": [("a token", size(costs.cache_per_token)), ("a sequence", size(costs.cache))],
        f"Memory to train {_sequences(costs)}": [
            *((name, size(n), notes.get(name, costs.train_dtype)) for name, n in costs.training.items()),
            ("total", size(trained)),
            ("with gradient checkpointing", size(checkpointed), "estimated"),
        ],
        f"Memory to serve {_sequences(costs)}": [
            *((name, size(n), costs.dtype) for name, n in costs.serving.items()),
            ("total", size(served)),
        ],
    }


def _sequences(costs: Costs) -> str:
    return f"on {costs.batch_size} x {costs.context_length:,} tokens"


def _shape(config: PreTrainedConfig) -> dict[str, str]:
    """Put an architecture into words."""
    sliding = config.layer_types.count("sliding_attention")
    layers = f"{config.num_hidden_layers}, {config.block_type}"
    heads = f"{config.num_attention_heads} of {config.head_dim}"
    if config.num_key_value_heads != config.num_attention_heads:
        heads += f", {config.num_key_value_heads} for keys and values"
    experts = f"{config.num_local_experts} experts, {config.num_experts_per_tok} a token, "
    return {
        "layers": f"{layers}, {sliding} with a window of {config.sliding_window}" if sliding else layers,
        "width": f"{config.hidden_size:,}",
        "heads": heads,
        "MLP": (experts if config.num_local_experts else "")
        + f"{config.intermediate_size:,} {config.hidden_act}{', gated' if config.gated_mlp else ''}",
        "norm": config.norm_type,
        "positions": f"{config.max_position_embeddings:,}, {config.position_embedding_type}",
        "vocabulary": f"{config.vocab_size:,}, {'tied' if config.tie_word_embeddings else 'untied'}",
    }


__all__ = [
    "Costs",
    "activations_by_part",
    "cached_numbers",
    "estimate",
    "estimate_activations",
    "flops_per_token",
    "forward_flops",
    "logits_at_once",
    "parameters_by_part",
    "tables",
]
