"""Layers with quantised weights, and what they take the place of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gpt_finetune.errors import InputError
from gpt_finetune.quantization.config import WeightOnlyConfig
from gpt_finetune.quantization.kernels import Kernel, Product, choose, quantize_rows

_SMALL = 1 << 12  # weights below which nothing is gained
_ON_META = torch.device("meta")


class QuantizedLinear(nn.Module):
    """x W^T + b with W quantised; the bias stays as it was.

    Args:
        outputs: Rows of the matrix.
        inputs: Its columns.
        bias: The layer's own, if it has one.
        form: How it is quantised.
        group_size: Inputs that share a scale, for 4 bits.
    """

    def __init__(
        self, outputs: int, inputs: int, bias: nn.Parameter | None, form: type[Kernel], group_size: int
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.form, self.group_size = form, group_size
        with _ON_META:  # values come from `quantize` or from a file
            weight, scale = form.empty(outputs, inputs, group_size)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias
        self.kernel: Product | None = None

    def quantize(self, weight: Tensor) -> None:
        """Take the values of a matrix (O, I)."""
        self.weight, self.scale = self.form.quantize(weight, self.group_size)

    def pack(self) -> None:
        """Lay the matrix out for its product; from then on it is held in that form only."""
        self.kernel = self.form(self.weight, self.scale, self.group_size)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (..., I) -> (..., O)."""
        kernel = self.checked(x)
        return kernel(x.reshape(-1, self.in_features), self.bias).view(*x.shape[:-1], -1)  # (..., O)

    def checked(self, x: Tensor) -> Product:
        """Return the kernel, or refuse what it cannot do.

        Raises:
            InputError: The layer is being trained, or is on another device.
        """
        if self.training and torch.is_grad_enabled():
            problem = "quantised weights cannot be trained"
            raise InputError("quantization_config", "training", problem, "Train the model first, then quantise it")
        if x.device.type != "cpu" or self.kernel is None:
            problem = "its quantised weights are laid out for the CPU"
            raise InputError("device", str(x.device), problem, "Leave the model there, or load it without quantisation")
        return self.kernel

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.kernel is not None:
            destination[f"{prefix}weight"] = self.kernel.stored()


class QuantizedEmbedding(nn.Module):
    """Vectors of tokens in 8 bits a value, with one scale a token; they come out in a float dtype.

    Args:
        count: Tokens.
        width: Values of a vector.
        dtype: Of what comes out.
    """

    def __init__(self, count: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = count, width, dtype
        self.register_buffer("weight", torch.empty(count, width, dtype=torch.int8, device=_ON_META))
        self.register_buffer("scale", torch.empty(count, device=_ON_META))

    def quantize(self, weight: Tensor) -> None:
        """Take the values of a table (V, D)."""
        self.weight, self.scale = quantize_rows(weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up: (B, T) -> (B, T, D)."""
        return (self.weight[input_ids] * self.scale[input_ids, None]).to(self.dtype)


def matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix (O, I) of a layer that can be quantised, or None of any other.

    A subclass may compute something else, so only the classes themselves count.
    """
    if type(module) is nn.Linear:
        return module.weight
    return module.weight.T if type(module) is Conv1D else None


def replacement(
    name: str, module: nn.Module, config: WeightOnlyConfig, is_input: bool = False, is_head: bool = False
) -> QuantizedLinear | QuantizedEmbedding | None:
    """Return the quantised layer, without values, that takes a module's place; None where it stays.

    Args:
        name: The module's, in the model.
        module: It.
        config: How to quantise.
        is_input: It is the model's table of token vectors.
        is_head: It is the model's output layer.
    """
    if any(f".{name}".endswith(f".{skipped}") for skipped in config.skip_modules):
        return None
    if is_input and type(module) is nn.Embedding:
        if config.bits == 16:  # looked up, not multiplied
            return None
        table = module.weight
        return QuantizedEmbedding(len(table), table.shape[1], table.dtype) if table.numel() >= _SMALL else None
    matrix = matrix_of(module)
    if matrix is None or matrix.numel() < _SMALL:
        return None
    outputs, inputs = matrix.shape
    form = choose(config.head_bits if is_head else config.bits, config.backend)
    if not form.fits(outputs, inputs, config.group_size):
        return None
    return QuantizedLinear(outputs, inputs, module.bias, form, config.group_size)
