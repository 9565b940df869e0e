"""Outputs of norms and activations computed again in the backward pass, instead of kept until then.

A norm keeps its input, and the product behind it keeps its output; so do an activation and a gate. The output follows
from the input in one pass over memory, which is little beside the product (selective recomputation, which Korthikanti
et al. 2022, arXiv:2205.05198, section 5, describe for attention). What is computed again is computed in the same way:
no number changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gpt_finetune.model.layers_gpt import Gate, QuickGELU

# What keeps its inputs for its own slope, and draws no random numbers. ReLU keeps its output: nothing would be saved.
CHEAP: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm, nn.GELU, nn.SiLU, QuickGELU, Gate)
LARGE = 2**20  # bytes of an output from which on it pays: the room that smaller ones take is not worth the time


class _Again:
    """How to compute a module's output again; holds it for as long as its takers ask for it.

    Args:
        module: What computed it.
        inputs: What from.
        output: What came out.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        self.module = module
        self.inputs = tuple(given.detach() for given in inputs)
        self.versions = [given._version for given in self.inputs]
        self.output, self.version = weakref.ref(output), output._version
        kind = output.device.type
        self.autocast: dict[str, Any] = {"device_type": kind, "enabled": torch.is_autocast_enabled(kind)}
        if self.autocast["enabled"]:
            self.autocast["dtype"] = torch.get_autocast_dtype(kind)
        self.takers = self.left = 0
        self.value: torch.Tensor | None = None

    def is_of(self, given: torch.Tensor) -> bool:
        """Tell whether a tensor is the output, as it came or in another shape."""
        output = self.output()
        return (
            output is not None
            and output.data_ptr() == given.data_ptr()
            and output.dtype == given.dtype
            and output.numel() == given.numel()
            and output.is_contiguous()
            and given.is_contiguous()
            and output._version == self.version
        )

    def compute(self, shape: torch.Size) -> torch.Tensor:
        """Return the output in the shape that a taker had it in; it is let go when all takers have had it.

        Raises:
            RuntimeError: An input has been overwritten since.
        """
        if self.value is None:
            if [given._version for given in self.inputs] != self.versions:
                raise RuntimeError(f"an input of {type(self.module).__name__} was changed before the backward pass")
            with torch.no_grad(), torch.autocast(**self.autocast):
                self.value = self.module.forward(*self.inputs)
            self.left = self.takers
        value, self.left = self.value, self.left - 1
        if self.left <= 0:
            self.value = None
        return value.view(shape)


def _unchanged(given: torch.Tensor, version: int) -> torch.Tensor:
    """Return what was kept, if it is what it was, which autograd does not ask where hooks keep it."""
    if given._version != version:
        raise RuntimeError(
            f"a tensor {tuple(given.shape)} was modified by an inplace operation before the backward pass"
        )
    return given


@contextmanager
def recomputed(enabled: bool = True, least: int = LARGE) -> Iterator[None]:
    """Keep, of what is computed within, no output of a norm, an activation or a gate for the backward pass.

    Args:
        enabled: Whether to; else everything is kept as ever.
        least: Bytes of an output to compute again; smaller ones are kept.
    """
    if not enabled:
        yield
        return
    made: dict[int, _Again] = {}  # by the output's address

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(module, CHEAP) or type(output) is not torch.Tensor or not output.requires_grad:
            return
        if output.nbytes >= least and all(type(given) is torch.Tensor for given in inputs):
            made[output.data_ptr()] = _Again(module, inputs, output)

    def pack(given: torch.Tensor) -> Callable[[], torch.Tensor]:
        again = made.get(given.data_ptr()) if type(given) is torch.Tensor else None
        if again is None or not again.is_of(given):
            return partial(_unchanged, given, given._version)
        again.takers += 1
        return partial(again.compute, given.shape)

    handle = register_module_forward_hook(note)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept()):
            yield
    finally:
        handle.remove()
