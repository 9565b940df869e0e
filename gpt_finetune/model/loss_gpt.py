"""The loss of a language model, piece by piece: the logits of a whole batch are never held.

The gradient of a piece is computed while its logits are there, as in Liger's fused linear cross-entropy (Hsu et al.
2024, arXiv:2410.10989, section 3.2). Shapes: N tokens, C of them in a piece, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]
Weights = tuple[torch.Tensor | None, torch.Tensor | None]
# 128 MiB, of bfloat16 96. Fewer make matrix products too narrow, and add up the head's gradient too often.
LOGITS_AT_ONCE = 2**27  # bytes
# 2 MiB in float32: what the cores of a CPU keep near them.
LOGITS_IN_CACHE = 2**19
COLUMNS_IN_CACHE = 2**12  # of the head's gradient, added up in float32 at once
ALONE, TOGETHER = 341, 1280  # tokens: up to the one and beyond the other, products over a vocabulary take all cores
ENOUGH = 1024  # tokens for which it pays to lay the head out anew


class Terms(NamedTuple):
    """What the loss is made of.

    Args:
        cap: Logits are kept within it, by tanh (Gemma Team 2024, arXiv:2408.00118, section 2); None leaves them.
        smoothing: Share of the target that is spread over the vocabulary (Szegedy et al. 2015, arXiv:1512.00567,
            section 7).
        z_loss: Weight of the squared logarithm of the softmax's denominator (PaLM, arXiv:2204.02311, section 5).
    """

    cap: float | None = None
    smoothing: float = 0.0
    z_loss: float = 0.0


def chunked_loss(
    head: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    cap: float | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    **_: Any,
) -> torch.Tensor:
    """Return the loss of the next tokens, as transformers' `ForCausalLMLoss` has it from their logits.

    Tokens without a label cost nothing. A plain linear head has its gradients when this returns; any other, be it
    adapted, quantised or cut, is run piece by piece, and again in the backward pass. A head whose weights are gathered
    from other ranks is run once, with all pieces inside: ranks have unequal numbers of them, and would not meet.

    Args:
        head: Makes logits (C, V) of hidden states (C, D).
        hidden_states: (B, T, D).
        labels: (B, T), aligned with the input: the shift happens here.
        vocab_size: V.
        cap: See `Terms`.
        num_items_in_batch: Divides the sum of losses; None divides by the tokens that have a label.
        shift_labels: Labels that are shifted already (B, T), instead of `labels`.
        ignore_index: Label of tokens that bear no loss.
        label_smoothing: See `Terms`.
        z_loss: See `Terms`.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(hidden_states.device)
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
    learned = targets != ignore_index
    items = learned.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).to(hidden.device)
    if torch.compiler.is_compiling():  # shapes must not depend on data
        targets, mask = targets.clamp(min=0), learned.float()
    else:
        places = learned.nonzero().squeeze(1)
        hidden, targets, mask = hidden[places], targets[places], torch.ones(len(places), device=hidden.device)
    terms = Terms(cap, label_smoothing, z_loss)
    if is_plain(head):
        return _LinearLoss.apply(hidden, head.weight, head.bias, targets, mask, terms) / items
    step = rows_at_once(vocab_size)
    if not gathers_weights(head) or torch.compiler.is_compiling():
        return loss_in_pieces(head, (hidden, targets, mask), terms, step) / items
    forward = head.forward

    def total(hidden: torch.Tensor) -> torch.Tensor:
        if isinstance(head, nn.Linear):
            return _LinearLoss.apply(hidden, head.weight, head.bias, targets, mask, terms)
        return loss_in_pieces(forward, (hidden, targets, mask), terms, step)

    head.forward = total
    try:
        return head(hidden) / items
    finally:
        del head.forward


def is_plain(head: nn.Module) -> bool:
    """Tell whether a head is a linear layer and nothing else: no adapter, hook, quantised or sharded weight."""
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and "forward" not in vars(head)
        and not any((head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks))
    )


def gathers_weights(head: nn.Module) -> bool:
    """Tell whether hooks around a head's forward pass gather its weights from other ranks: FSDP2, DeepSpeed ZeRO-3."""
    shared = hasattr(head, "unshard") or any(hasattr(weight, "ds_id") for weight in head.parameters())
    return shared and "forward" not in vars(head)


def rows_at_once(vocab_size: int, dtype: torch.dtype = torch.float32) -> int:
    """Return how many tokens make up a piece at most."""
    return max(128, LOGITS_AT_ONCE * (3 if dtype.itemsize == 2 else 4) // 4 // (vocab_size * dtype.itemsize))


def even_pieces(length: int, most: int) -> int:
    """Return the length of pieces that are about equal and have at most so many rows."""
    return max(1, -(-length // max(1, -(-length // most))))


def loss_in_pieces(head: Head, rows: tuple[torch.Tensor, ...], terms: Terms, step: int) -> torch.Tensor:
    """Return the sum of the losses of tokens, `step` of them at once: (N, D), (N,), (N,) -> ()."""
    pieces = zip(*(given.split(step) for given in rows), strict=True)
    return torch.stack([checkpoint(piece_loss, head, *piece, terms, use_reentrant=False) for piece in pieces]).sum()


def piece_loss(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, terms: Terms
) -> torch.Tensor:
    """Return the sum of the losses of tokens: (C, D), (C,), (C,) -> ()."""
    logits = head(hidden).float()
    if terms.cap is not None:
        logits = terms.cap * torch.tanh(logits / terms.cap)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=terms.smoothing)
    return (losses + terms.z_loss * logits.logsumexp(-1).square()) @ mask


def differentiate_(logits: torch.Tensor, targets: torch.Tensor, terms: Terms, wanted: bool) -> torch.Tensor:
    """Return the losses of logits, and put their derivatives into the logits' place: (C, V), (C, 1) -> (C, 1).

    Passes over the logits are what costs time here, so that there are as few as can be.

    Args:
        logits: Float32; overwritten.
        targets: Token ids.
        terms: Of the loss.
        wanted: Whether to differentiate.
    """
    cap, smoothing, z_loss = terms
    slope = None
    if cap is not None:
        logits.div_(cap).tanh_()
        slope = 1 - logits.square() if wanted else None
        logits.mul_(cap)
    right = logits.gather(1, targets)
    mean = logits.mean(1, keepdim=True) if smoothing else None
    torch.log_softmax(logits, -1, out=logits)
    total = right - logits.gather(1, targets)  # logarithm of the softmax's denominator
    losses = total - right
    if mean is not None:
        losses += smoothing * (right - mean)
    if z_loss:
        losses += z_loss * total.square()
    if wanted:
        logits.exp_()
        if z_loss:
            logits.mul_(1 + 2 * z_loss * total)
        if smoothing:
            logits.sub_(smoothing / logits.shape[1])
        logits.scatter_add_(1, targets, torch.full_like(right, smoothing - 1))
        if slope is not None:
            logits.mul_(slope)
    return losses


def differentiate_in_tiles_(
    logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, bias: Weights, terms: Terms, wanted: bool
) -> torch.Tensor:
    """Do the same for logits of any precision, a few rows of them in float32 at once: (C, V), (C, 1), (C, 1) -> (C, 1).

    All passes over a few rows find them in a CPU's cache, where a GPU wants long launches.

    Args:
        logits: Overwritten.
        targets: Token ids.
        mask: Factor of each token's loss.
        bias: Of the head, (V,), and its gradient so far, to which this adds; each may be None.
        terms: Of the loss.
        wanted: Whether to differentiate.
    """
    at_once = LOGITS_IN_CACHE if logits.device.type == "cpu" else LOGITS_AT_ONCE // 4
    losses, (added, by_bias) = torch.empty(targets.shape, device=logits.device), bias
    tile = max(1, at_once // logits.shape[1])
    for first in range(0, len(logits), tile):
        some = slice(first, first + tile)
        part = logits[some].float()  # float32 is itself
        if added is not None:
            part.add_(added)
        losses[some] = differentiate_(part, targets[some], terms, wanted)
        if by_bias is not None:
            by_bias.add_((part * mask[some]).sum(0))
        if wanted and part.dtype != logits.dtype:
            logits[some] = part
    return losses


def differentiate_narrow_(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same for logits in bfloat16 and a plain loss, in two passes, and leave the targets' derivatives out.

    A softmax is float32 within, and its rounding that of a derivative. What a rounded probability near 1 would lose is
    its distance from 1: that is what all other tokens have, and is taken from them, for derivative and loss alike.

    Returns:
        The losses, (C, 1), and the targets' derivatives, (C, 1), instead of which the logits hold zeros.
    """
    torch.softmax(logits, -1, out=logits)
    here = torch.arange(len(logits), device=logits.device), targets.squeeze(1)  # scatter_ takes longer than a softmax
    right, logits[here] = logits[here].float()[:, None], 0.0
    others = logits.sum(1, keepdim=True).float()
    return torch.where(right > 0.5, -torch.log1p(-others), -right.log()), -others


def has_tiles() -> bool:
    """Tell whether the CPU multiplies bfloat16 in tiles (AMX), which want other layouts than vectors (AVX-512) do."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def product_over_vocabulary(derivatives: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return what the logits' derivatives mean for hidden states: (C, V), (V, D) -> (C, D).

    In tiles, such a product leaves half of the cores idle where it makes some hundreds of rows narrower than 1,024.
    """
    tiles = derivatives.device.type == "cpu" and derivatives.dtype == torch.bfloat16 and has_tiles()
    if not tiles or len(derivatives) > TOGETHER or matrix.shape[1] >= 1024:
        return derivatives @ matrix
    step = even_pieces(len(derivatives), ALONE)
    return torch.cat([some @ matrix for some in derivatives.split(step)])


def laid_out_anew(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a head's columns as rows, in another precision, by pieces that stay in a CPU's cache: (V, D) -> (D, V)."""
    columns = weight.new_empty(weight.shape[::-1], dtype=dtype)
    for there, here in zip(columns.split(COLUMNS_IN_CACHE, 1), weight.split(COLUMNS_IN_CACHE), strict=True):
        there.copy_(here.to(dtype).t())
    return columns


class _LinearLoss(torch.autograd.Function):
    """The sum of the losses over a linear head: (N, D), (V, D), (V,), (N,), (N,) -> ()."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        mask: torch.Tensor,
        terms: Terms,
    ) -> torch.Tensor:
        """Go through the pieces; sums are float32 whatever the products are computed in."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        step = even_pieces(len(hidden), rows_at_once(len(weight), dtype))
        quick = device == "cpu" and dtype == torch.bfloat16 and not torch.compiler.is_compiling()
        narrow = quick and bias is None and terms == Terms() and any(ctx.needs_input_grad[:2])
        anew = quick and len(hidden) >= ENOUGH and has_tiles()  # the product takes half as long
        columns = laid_out_anew(weight, dtype) if anew else weight.to(dtype).t()
        buffer = hidden.new_empty((min(step, len(hidden)), len(weight)), dtype=dtype)
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        blank = torch.empty_like if len(hidden) else torch.zeros_like  # the first piece writes, the others add
        makers = zip((blank, blank, torch.zeros_like), (hidden, weight, bias), wanted, strict=True)
        grads = [make(given, dtype=torch.float32) if needed else None for make, given, needed in makers]
        share = COLUMNS_IN_CACHE if device == "cpu" else len(weight)
        losses = hidden.new_empty((len(hidden), 1), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(hidden), step):
                here = slice(begin, begin + step)
                rows, mine = hidden[here].to(dtype), mask[here, None]
                logits = torch.mm(rows, columns, out=buffer[: len(rows)])
                slopes = None
                if narrow:
                    losses[here], slopes = differentiate_narrow_(logits, targets[here, None])
                if slopes is None or not losses[here].isfinite().all():  # what is 0 in bfloat16 has a logarithm
                    logits, slopes = torch.mm(rows, columns, out=logits) if narrow else logits, None
                    given = logits, targets[here, None], mine, (bias, grads[2])
                    losses[here] = differentiate_in_tiles_(*given, terms, any(wanted))
                if grads[0] is not None:
                    grads[0][here] = product_over_vocabulary(logits, columns.t())
                    if slopes is not None:  # most of it, and so not rounded
                        grads[0][here] += slopes * weight[targets[here]]
                    grads[0][here] *= mine
                if grads[1] is not None and dtype == torch.float32:
                    torch.addmm(grads[1], logits.t(), rows * mine, beta=int(begin > 0), out=grads[1])
                elif grads[1] is not None:
                    rows = rows * mine.to(dtype)
                    for total, some in zip(grads[1].split(share), logits.split(share, 1), strict=True):
                        (total.add_ if begin else total.copy_)(some.t() @ rows)
                    if slopes is not None:
                        grads[1].index_add_(0, targets[here], slopes * mine * hidden[here])
        loss = (losses.squeeze(1) * mask).sum()
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if given is None else given.dtype for given in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass has left; in place, since nothing else needs it."""
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if grad is None else grad.mul_(scale).to(dtype) for grad, dtype in grads), None, None, None)
