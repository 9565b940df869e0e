"""How attention is computed: transformers' backends, and what is better in their place or fills their gaps.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key-value heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers.integrations.eager_paged import eager_paged_attention_forward
from transformers.integrations.flex_attention import compile_friendly_flex_attention, flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_masks_for_generate, packed_sequence_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_gpt import GPTConfig
from .dropout_gpt import draw_kept, draws_fast, growth

# Up to so many keys matrix products train faster than a fused kernel, on a CPU in bfloat16.
SHORT = 512
BLOCK = 256  # of their queries at once


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as written in the paper: softmax(scale Q K^T) V, with its weights.

    Args:
        module: The attention layer, read for its group size and mode.
        query: (B, H, T, K).
        key: (B, G, S, K).
        value: (B, G, S, K).
        attention_mask: Added to the scores, or True for what is seen, (B or 1, 1, T, S), or None.
        scaling: Factor of the scores.
        dropout: Probability of dropping an attention weight.
        s_aux: One more logit a head in each softmax, (H,), which carries no value: a sink.
        **kwargs: Arguments of other backends.

    Returns:
        The mixed values (B, T, H, K) and the weights (B, H, T, S).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat((scores, s_aux[:, None, None].to(scores.dtype).expand(*scores.shape[:-1], 1)), dim=-1)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[2]]
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def sdpa_with_sinks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    s_aux: torch.Tensor,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with sinks in a fused kernel, which never holds the scores.

    A sink is the logit of one more key, in front, whose value is zero. To get that logit from a dot product, heads
    grow by a coordinate: sink / scale in each query, 1 in that key, 0 in the others (and by zeros, to a multiple of 8,
    which kernels like). Where the kernel makes the causal mask itself, it wants a square: a query in front fills it.
    """
    if cache is not None:  # continuous batching has it filled here, with keys that have not grown
        key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    size, grown = key.shape[-1], 8 - key.shape[-1] % 8
    fills_square = attention_mask is None and module.is_causal and query.shape[2] > 1
    coordinate = nn.functional.pad((s_aux / scaling).to(query.dtype).view(1, -1, 1, 1), (0, grown - 1))
    query = torch.cat((query, coordinate.expand(*query.shape[:-1], -1)), dim=-1)  # (B, H, T, K + grown)
    query = nn.functional.pad(query, (0, 0, int(fills_square), 0))
    key = nn.functional.pad(key, (0, grown, 1, 0))  # (B, G, 1 + S, K + grown)
    key[:, :, 0, size] = 1.0
    value = nn.functional.pad(value, (0, grown, 1, 0))
    if attention_mask is not None:  # True, or 0 where it is added to the scores: the sink is seen by all
        attention_mask = nn.functional.pad(attention_mask, (1, 0), value=attention_mask.dtype == torch.bool)
    mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return mixed[:, int(fills_square) :, :, :size], None  # (B, T, H, K)


def flex_also_for_one_token(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Flex attention, right on a CPU too: torch 2.13, compiled for one, mixes wrong values into a single query."""
    if query.device.type != "cpu" or query.shape[2] > 1 or not isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    mixed = flex_attention(query, key, value, block_mask=attention_mask, enable_gqa=True, scale=scaling)
    return mixed.transpose(1, 2), None


def flex_with_sinks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    s_aux: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with sinks from the log-sum-exp L of the scores: a sink leaves exp(L) / (exp(L) + exp(sink)) of it."""
    if kwargs.get("dropout"):
        raise ValueError(f"attention_dropout={kwargs['dropout']}: flex attention has none; use 'sdpa', or set it to 0")
    # compiled for a CPU, flex attention does not return L
    attend = flex_attention if query.device.type == "cpu" else compile_friendly_flex_attention
    options = {"enable_gqa": True, "scale": scaling, "return_aux": AuxRequest(lse=True)}
    options |= {} if attend is flex_attention else {"training": module.training}
    mixed, aux = attend(query, key, value, block_mask=attention_mask, **options)  # (B, H, T, K), lse (B, H, T)
    left = torch.sigmoid(aux.lse - s_aux[:, None]).to(mixed.dtype)
    return (mixed * left[..., None]).transpose(1, 2).contiguous(), None


class WindowMask(NamedTuple):
    """What the queries of a sliding layer see, written out for some of them at a time: for all it is O(T^2).

    Args:
        window: Tokens seen: the query and window - 1 before it, or window to each side.
        is_causal: Whether only those before it are.
        real: Whether each key is no padding, (B, T), or None.
        documents: Number of each token's document, (B, T), or None.
    """

    window: int
    is_causal: bool
    real: torch.Tensor | None
    documents: torch.Tensor | None

    def between(self, rows: range, keys: range, device: torch.device) -> torch.Tensor:
        """Return which of some keys some queries see, (B or 1, 1, rows, keys)."""
        queries, near = (torch.arange(some.start, some.stop, device=device) for some in (rows, keys))
        behind = queries[:, None] - near
        seen = ((behind >= 0) & (behind < self.window) if self.is_causal else behind.abs() <= self.window)[None, None]
        if self.real is not None:
            seen = seen & self.real[:, None, None, near]
        if self.documents is not None:
            seen = seen & (self.documents[:, None, queries, None] == self.documents[:, None, None, near])
        return seen


def masks_of_layers(
    config: GPTConfig, inputs_embeds: torch.Tensor, mask: Any, cache: Any, documents: torch.Tensor | None
) -> dict[str, Any]:
    """Return the mask of each layer type: transformers', but of long texts windows.

    Args:
        config: The model's.
        inputs_embeds: (B, T, D).
        mask: What is no padding, (B, past + T), or None.
        cache: Of earlier keys and values, or None.
        documents: Number of each token's packed document, (B, T), or None.
    """
    isolate = None if documents is None else packed_sequence_mask_function(documents)
    length, slides = inputs_embeds.shape[1], "sliding_attention" in config.layer_types
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    in_windows = slides and cache is None and (mask is None or mask.ndim == 2) and attend is sdpa_attention_forward
    # of short texts whole masks cost next to nothing, and matrix products want them
    if not in_windows or torch.compiler.is_compiling() or length <= max(SHORT, 2 * config.sliding_window):
        return create_masks_for_generate(config, inputs_embeds, mask, cache, and_mask_function=isolate)
    real = None if mask is None else mask.to(inputs_embeds.device) != 0
    masks: dict[str, Any] = {"sliding_attention": WindowMask(config.sliding_window, config.is_causal, real, documents)}
    if "full_attention" in config.layer_types:
        masks["full_attention"] = create_causal_mask(config, inputs_embeds, mask, cache, and_mask_function=isolate)
    return masks


def in_blocks(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backend compute a sliding layer block by block, in O(T * window).

    A block of queries needs the keys of its own positions and of a window around them; what else its part of the mask
    hides (padding, other documents) stays hidden. Texts of at most two windows are computed whole, and so are those
    that continue a cache, which continuous batching passes here, and compiled code, whose loops would fix the length.
    """

    @functools.wraps(attend)
    def attend_in_blocks(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | WindowMask | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        length = query.shape[2]
        whole = sliding_window is None or attention_mask is None or "cache" in kwargs or torch.compiler.is_compiling()
        if whole or length != key.shape[2] or length <= 2 * sliding_window:
            if isinstance(attention_mask, WindowMask):  # made before compiled code began, as of a layer by itself
                attention_mask = attention_mask.between(range(length), range(length), query.device)
            return attend(module, query, key, value, attention_mask, **kwargs)
        # split and joined again: differentiating a slice would fill zeros for all that it leaves out
        queries, keys, values = (x.split(sliding_window, dim=2) for x in (query, key, value))
        parts = []
        for number, rows in enumerate(queries):
            # a window looks back over the token itself and window - 1 more, or at window tokens to each side
            near = slice(max(0, number - 1), number + (1 if module.is_causal else 2))
            start, begin = number * sliding_window, near.start * sliding_window
            stop, end = start + rows.shape[2], min(length, near.stop * sliding_window)
            if isinstance(attention_mask, WindowMask):
                mask = attention_mask.between(range(start, stop), range(begin, end), query.device)
            else:
                mask = attention_mask[..., start:stop, begin:end]
            around = (torch.cat(blocks[near], dim=2) for blocks in (keys, values))
            parts.append(attend(module, rows, *around, mask, **kwargs)[0])
        return torch.cat(parts, dim=1), None  # (B, T, H, K)

    return attend_in_blocks


class _Products(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V by matrix products: (N, T, K), (N, S, K), (N, S, K) -> (N, T, K), N = B * H."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        dropout: float,
        spans: list[tuple[slice, slice]],
    ) -> torch.Tensor:
        """Keep no weights: as in flash attention (arXiv:2205.14135, section 3.1) the backward pass has them again."""
        ctx.scale, ctx.spans, ctx.dropout, mixed, drawn = scale, spans, dropout, torch.empty_like(query), []
        for rows, keys in spans:
            weights = weigh(query, key, mask, (rows, keys), scale)
            drawn.append(draw_kept(weights.shape, dropout) if dropout else None)
            torch.bmm(weights if drawn[-1] is None else weights * drawn[-1], value[:, keys], out=mixed[:, rows])
        ctx.save_for_backward(query, key, value, mask, *drawn)
        return mixed.mul_(growth(dropout)) if dropout else mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Differentiate by query, key and value; what several spans add to a key is summed in float32."""
        query, key, value, mask, *drawn = ctx.saved_tensors
        slope = slope * growth(ctx.dropout) if ctx.dropout else slope
        by_query, sums = torch.empty_like(query), list[torch.Tensor]()
        for (rows, keys), kept in zip(ctx.spans[::-1], drawn[::-1], strict=True):  # the last one has all keys
            weights = weigh(query, key, mask, (rows, keys), ctx.scale)
            by_weights, used = torch.bmm(slope[:, rows], value[:, keys].mT), weights
            if kept is not None:
                by_weights, used = by_weights.mul_(kept), weights * kept
            scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            torch.bmm(scores, key[:, keys], out=by_query[:, rows])
            parts = torch.bmm(scores.mT, query[:, rows]), torch.bmm(used.mT, slope[:, rows])
            for total, part in zip(sums, parts, strict=False):
                total[:, keys] += part
            sums = sums or [part.float() if len(ctx.spans) > 1 else part for part in parts]
        by_key, by_value = sums
        return *(by.mul_(ctx.scale).to(key.dtype) for by in (by_query, by_key)), by_value.to(key.dtype), *[None] * 4


def weigh(query: torch.Tensor, key: torch.Tensor, mask: Any, span: tuple[slice, slice], scale: float) -> torch.Tensor:
    """Return softmax(scale Q K^T + mask) of a span: (N, T, K), (N, S, K), (B, H, T, S) -> (N, rows, keys)."""
    rows, keys = span
    seen = query.new_zeros(()) if mask is None else mask[..., rows, keys].flatten(0, 1)  # no copy of what heads share
    scores = torch.baddbmm(seen, query[:, rows], key[:, keys].mT, beta=float(mask is not None), alpha=scale)
    return torch.softmax(scores, -1, out=scores)  # within, it is float32


def dtype_of_products(query: torch.Tensor, keys: int, dropout: float, window: int | None) -> torch.dtype | None:
    """Return the precision of matrix products if they train faster than a backend, else None."""
    if query.device.type != "cpu" or query.shape[2] == 1 or not query.requires_grad or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if not dropout:
        return dtype if keys <= SHORT and dtype == torch.bfloat16 else None
    fits = keys <= SHORT or window is None
    return dtype if fits and dtype in (torch.bfloat16, torch.float32) and draws_fast(query, dropout) else None


def or_by_products(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backend train by plain matrix products where that is faster, and a layer is told so (`by_products`).

    On a CPU in bfloat16 the backward pass of torch's fused kernel takes several times as long on short rows. Scores and
    weights are rounded to bfloat16 here, as eager attention rounds them. Dropout the fused kernel does not have there:
    torch keeps all weights, whatever the precision and the length, and here which of them stay is kept, (B, H, T, S).
    """

    @functools.wraps(attend)
    def attend_by_products(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        window = kwargs.get("sliding_window")
        dtype = dtype_of_products(query, key.shape[2], dropout, window) if module.by_products else None
        if dtype is None:
            return attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        shape, groups = query.shape, module.num_key_value_groups
        spans = spans_of_keys(module, attention_mask, shape[2], key.shape[2])
        mask = additive_mask(module, attention_mask, shape, key.shape[2], dtype)
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        with torch.autocast("cpu", enabled=False):
            heads = (given.to(dtype).flatten(0, 1) for given in (query, key, value))
            mixed = _Products.apply(*heads, mask, scaling, dropout, spans)
        return mixed.view(shape).transpose(1, 2), None  # (B, T, H, K)

    return attend_by_products


def spans_of_keys(module: nn.Module, mask: torch.Tensor | None, tokens: int, keys: int) -> list[tuple[slice, slice]]:
    """Return blocks of queries, each with the keys to compute: where none looks ahead, little more than half of all."""
    blocks = [(slice(begin, begin + BLOCK), slice(begin + BLOCK)) for begin in range(0, tokens, BLOCK)]
    causal = module.is_causal
    if mask is not None:
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        causal = not any((mask[..., rows, seen.stop :] > lowest).any() for rows, seen in blocks)
    return blocks if causal else [(slice(tokens), slice(keys))]


def additive_mask(
    module: nn.Module, mask: torch.Tensor | None, shape: torch.Size, keys: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """Return what is added to the scores, (B, H, T, S) in the room of what they share, or None."""
    lowest = torch.finfo(dtype).min
    if mask is None and not module.is_causal:
        return None
    if mask is None:  # as in torch's kernel, a query sees keys up to its own place
        mask = torch.full((1, 1, shape[2], keys), lowest, dtype=dtype).triu_(1)
    elif mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)
    return mask.to(dtype).expand(*shape[:3], keys)


# transformers' function for an `attn_implementation` -> ours, where that is not the best
BETTER: dict[Callable[..., Any], Callable[..., Any]] = {
    sdpa_attention_forward: or_by_products(in_blocks(sdpa_attention_forward)),
    flex_attention_forward: flex_also_for_one_token,
}
# the same for layers with sinks: those of transformers that know of none would leave them out in silence
WITH_SINKS: dict[Callable[..., Any], Callable[..., Any]] = {
    eager_attention_forward: eager_attention_forward,
    sdpa_attention_forward: in_blocks(sdpa_with_sinks),
    flex_attention_forward: flex_with_sinks,
    eager_paged_attention_forward: eager_paged_attention_forward,  # of continuous batching; reads the layer's own
}
