"""Queries, keys and values by one product: on one token, a call of a kernel costs about what its arithmetic costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gpt_finetune.quantization.kernels import Kernel
from gpt_finetune.quantization.layers import QuantizedLinear

NAMES = ("q_proj", "k_proj", "v_proj")


class Part:
    """Some rows of a joint matrix, as the kernel of the layer that they belong to.

    Multiplying by them alone, as where a layer is called by itself or wrapped by an adapter, takes the whole.
    """

    def __init__(self, joint: Kernel, rows: slice, outputs: int) -> None:
        self.joint, self.rows, self.share = joint, rows, (rows.stop - rows.start) / outputs

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply and add the bias: (N, I) -> (N, O)."""
        y = self.joint(x)[:, self.rows]
        return y if bias is None else y + bias

    def stored(self) -> Tensor:
        """Return the rows as they were quantised."""
        return self.joint.stored()[self.rows].clone()

    def nbytes(self) -> int:
        """Return what the rows take in memory."""
        return round(self.joint.nbytes() * self.share)


class JointProjection:
    """What stands in the place of an attention layer's `project`.

    Args:
        attention: The layer; its three projections have their values, and are not packed yet.
    """

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention
        self.layers: list[QuantizedLinear] = [getattr(attention, name) for name in NAMES]
        first = self.layers[0]
        self.sizes = [layer.out_features for layer in self.layers]
        scale = torch.cat([layer.scale for layer in self.layers], dim=first.form.scale_dim)
        self.kernel: Any = first.form(torch.cat([layer.weight for layer in self.layers]), scale, first.group_size)
        start, outputs = 0, sum(self.sizes)
        for layer in self.layers:
            rows = slice(start, start + layer.out_features)
            layer.kernel, layer.weight, start = Part(self.kernel, rows, outputs), None, rows.stop

    def __call__(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Make queries, keys and values: (B, T, D) -> (B, T, H * K) and twice (B, T, G * K)."""
        now = [getattr(self.attention, name) for name in NAMES]
        if any(one is not other or one._forward_hooks for one, other in zip(now, self.layers, strict=True)):
            return tuple(layer(hidden_states) for layer in now)  # an adapter stands around one, or somebody listens
        biases = [layer.bias for layer in self.layers]
        bias = None if biases[0] is None else torch.cat(biases)
        self.layers[0].checked(hidden_states)
        joint = self.kernel(hidden_states.reshape(-1, hidden_states.shape[-1]), bias)
        return joint.view(*hidden_states.shape[:-1], -1).split(self.sizes, dim=-1)


def join(model: nn.Module) -> None:
    """Let attention layers that offer it, and whose projections are quantised alike, take one product for three."""
    for module in model.modules():
        if getattr(module, "projects_one_source", False):
            found = [layer for name in NAMES if type(layer := getattr(module, name)) is QuantizedLinear]
            kinds = {(layer.form, layer.in_features, layer.bias is None) for layer in found}
            if len(found) == len(NAMES) and len(kinds) == 1:
                module.project = JointProjection(module)
