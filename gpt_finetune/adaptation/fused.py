"""LoRA's layers in fewer passes: x W^T + s (x A^T) B^T as one operation, which keeps x and the narrow x A^T only.

PEFT's own layer makes four buffers as wide as the layer's output for each call, of which one stays, and differentiates
the layer and its adapter apart, so that both give a slope of x, to be added (Hu et al. 2021, arXiv:2106.09685, for what
is computed). Here the adapter is added within the product, forward and backward. Sums are rounded once instead of three
times; in float32 the same but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable


class _AdaptedProduct(torch.autograd.Function):
    """A frozen linear layer with its adapter: (..., I) -> (..., O)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Multiply by W (O, I), A (R, I) and B (O, R), all in one precision."""
        rows = x.reshape(-1, x.shape[-1])
        narrow = rows @ down.mT
        ctx.scale = scale
        ctx.save_for_backward(x, weight, down, up, narrow)
        output = nn.functional.linear(rows, weight, bias)
        return output.addmm_(narrow, up.mT, alpha=scale).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Differentiate by x, A and B."""
        x, weight, down, up, narrow = ctx.saved_tensors
        rows, slopes = x.reshape(-1, x.shape[-1]), slope.reshape(-1, len(weight))
        by_narrow = (slopes @ up).mul_(ctx.scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (slopes @ weight).addmm_(by_narrow, down).view(x.shape)
        by_up = (slopes.mT @ narrow).mul_(ctx.scale)
        return by_x, None, None, by_narrow.mT @ rows, by_up, None


class FusedLoraLinear(Linear):
    """PEFT's layer, with a quicker way where there is one adapter of plain matrices on a plain frozen layer."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Transform each token by itself: (..., I) -> (..., O)."""
        name = None if args or kwargs else self._only_adapter()
        if name is None:
            return super().forward(x, *args, **kwargs)
        down, up, kind = self.lora_A[name].weight, self.lora_B[name].weight, x.device.type
        given = [x, self.base_layer.weight, self.base_layer.bias, down, up]
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
            dtype = torch.get_autocast_dtype(kind)
            given = [each if each is None else each.to(dtype) for each in given]
        present = [each for each in given if each is not None]
        plain = all(type(each.data) is torch.Tensor for each in present)
        if not plain or len({each.dtype for each in present}) > 1:
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return _AdaptedProduct.apply(*given, self.scaling[name])

    def _only_adapter(self) -> str | None:
        """Return the name of the adapter if nothing else is to be computed, else None."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        base = self.base_layer
        if type(base) is not nn.Linear or name not in self.lora_A or name in self.lora_variant:
            return None
        if any(map(_is_watched, (base, self.lora_A[name], self.lora_B[name]))):
            return None
        drops = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        trained = any(each.requires_grad for each in base.parameters())
        return None if drops or trained or self.lora_B[name].bias is not None else name


def _is_watched(layer: nn.Module) -> bool:
    """Tell whether somebody wants to see, or has replaced, what a layer computes by itself."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or "forward" in layer.__dict__


def fuse(adapted: nn.Module) -> None:
    """Let LoRA's linear layers take the quicker way; what they hold, save and merge stays PEFT's."""
    for module in adapted.modules():
        if type(module) is Linear:
            module.__class__ = FusedLoraLinear
