"""Outputs of norms and activations, and casts of weights, computed again in the backward pass instead of kept.

A norm keeps its input, and the product behind it keeps its output, or autocast's copy of it; so do an activation and a
gate. The output follows from the input in one pass over memory, which is little beside the product (selective
recomputation, which Korthikanti et al. 2022, arXiv:2205.05198, section 5, describe for attention). Autocast's copies of
the weights would be kept too, two bytes a parameter; the weights are there anyway. What is computed again is computed
in the same way: no number changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        before: What was noted last. If it is of a part of the module, such as a gate's activation, then computing the
            module's output has that of the part on the way.
    """

    def __init__(
        self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor, before: _Again | None = None
    ) -> None:
        self.module = module
        self.part = before if before is not None and before.module in module.children() else None
        self.inputs = tuple(given.detach() for given in inputs)
        self.versions = [given._version for given in self.inputs]
        self.output, self.version = weakref.ref(output), output._version
        self.device, kind = output.device, output.device.type
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
            with torch.no_grad(), torch.autocast(**self.autocast), self._watched():
                self._hold(self.module.forward(*self.inputs))
        value, self.left = self.value, self.left - 1
        assert value is not None
        if self.left <= 0:
            self.value = None
        return value.view(shape)

    def _hold(self, value: torch.Tensor) -> None:
        self.value, self.left = value, self.takers

    def _watched(self) -> AbstractContextManager[Any]:
        """Let the part have its output, which the backward pass will ask for next, while the module computes it."""
        part = self.part
        if part is None or not part.takers or part.value is not None:
            return nullcontext()
        return part.module.register_forward_hook(lambda module, given, output: part._hold(output))


class _Narrow(nn.Module):
    """Gives an output in the precision of a copy, as autocast makes them for products.

    Args:
        whole: How to compute the output.
        copy: Its copy.
    """

    def __init__(self, whole: _Again, copy: torch.Tensor) -> None:
        super().__init__()
        self.whole, self.shape, self.dtype = whole, copy.shape, copy.dtype
        whole.takers += 1

    def forward(self) -> torch.Tensor:
        """Compute and copy."""
        return self.whole.compute(self.shape).to(self.dtype)


def _copied(given: torch.Tensor) -> tuple[torch.Tensor, Any] | None:
    """Return the copy, as autocast makes them, that a tensor is or is a view of, and the node that made its source."""
    copy = given if given._base is None else given._base
    if copy.grad_fn is None or copy.grad_fn.name() != "ToCopyBackward0":
        return None
    (source, _), *_ = copy.grad_fn.next_functions
    return copy, source


def _cast(weight: torch.Tensor, version: int, dtype: torch.dtype, layout: tuple[Any, ...]) -> torch.Tensor:
    """Return a weight in another precision once more, and the view of it that was taken."""
    return _unchanged(weight.detach(), version).to(dtype).as_strided(*layout)


def _unchanged(given: torch.Tensor, version: int) -> torch.Tensor:
    """Return what was kept, if it is what it was, which autograd does not ask where hooks keep it."""
    if given._version != version:
        raise RuntimeError(
            f"a tensor {tuple(given.shape)} was modified by an inplace operation before the backward pass"
        )
    return given


@contextmanager
def recomputed(enabled: bool = True, least: int = LARGE) -> Iterator[None]:
    """Keep no output of a norm, an activation or a gate, no copy of one, nor of a weight, for the backward pass.

    Args:
        enabled: Whether to; else everything is kept as ever.
        least: Bytes of what to compute again; what is smaller is kept.
    """
    if not enabled:
        yield
        return
    made: dict[int, _Again] = {}  # by the output's address
    nodes: dict[Any, _Again] = {}  # by what is to differentiate the output
    before: _Again | None = None

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal before
        if not isinstance(module, CHEAP) or type(output) is not torch.Tensor or not output.requires_grad:
            return
        if output.nbytes >= least and all(type(given) is torch.Tensor for given in inputs):
            before = made[output.data_ptr()] = nodes[output.grad_fn] = _Again(module, inputs, output, before)
            torch.clear_autocast_cache()  # of copies that nobody will ask for in this pass

    def pack(given: torch.Tensor) -> Callable[[], torch.Tensor]:
        if type(given) is not torch.Tensor:
            return partial(_unchanged, given, given._version)
        if given.nbytes >= least and (found := _copied(given)) is not None:
            copy, source = found
            weight = getattr(source, "variable", None)  # of what adds up a leaf's gradient
            if weight is not None and type(weight.data) is torch.Tensor and weight.stride() == copy.stride():
                layout = given.size(), given.stride(), given.storage_offset()
                return partial(_cast, weight, weight._version, given.dtype, layout)
            whole, known = nodes.get(source), made.get(copy.data_ptr())
            if whole is not None and whole.device == copy.device and not (known and known.is_of(copy)):
                made[copy.data_ptr()] = _Again(_Narrow(whole, copy), (), copy)
        again = made.get(given.data_ptr())
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
