"""Products that `torch.compile` calls without looking inside: it cannot trace the layouts of what they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_HELD: WeakValueDictionary[str, Opaque] = WeakValueDictionary()
_NUMBERS = count()  # those of one model are the same in each process, and so are its compiled graphs


class Opaque(ABC):
    """A matrix behind a number, under which a compiled graph finds it again.

    Args:
        outputs: Its rows.
    """

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self.number = str(next(_NUMBERS))  # a whole number might become a variable of the graph
        _HELD[self.number] = self

    @abstractmethod
    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply, and add the bias: (N, I) -> (N, O)."""

    def result(self, x: Tensor) -> torch.dtype:
        """Return the dtype of what `multiply` makes of `x`."""
        return x.dtype

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Call `multiply`, by its number in compiled code."""
        if torch.compiler.is_compiling():
            return torch.ops.gpt_finetune.product(x, bias, self.number)
        return self.multiply(x, bias)


def _product(x: Tensor, bias: Tensor | None, number: str) -> Tensor:
    return _HELD[number].multiply(x, bias)


def _shape_of_product(x: Tensor, bias: Tensor | None, number: str) -> Tensor:
    matrix = _HELD[number]
    return x.new_empty((x.shape[0], matrix.outputs), dtype=matrix.result(x))


# the plain form of an operator: `torch.library.custom_op` takes several times as long a call
_LIBRARY = torch.library.Library("gpt_finetune", "DEF")
_LIBRARY.define("product(Tensor x, Tensor? bias, str number) -> Tensor")
_LIBRARY.impl("product", _product, "CPU")
torch.library.register_fake("gpt_finetune::product", _shape_of_product, lib=_LIBRARY)
