"""Steps whose loss or gradient is not finite: found where they happen, with their rows and the first bad tensor."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import IterableDataset


class StepFigures(NamedTuple):
    """What is looked at of an optimiser step, which is counted from 1."""

    step: int
    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether nothing is wrong with it."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class StepWatch:
    """Gathers the loss and the gradient's norm of each optimiser step.

    On the CPU a look at them costs nothing. On a GPU the host would wait for the device at each step, and the device
    then for the host: `later` sends the figures across without waiting, and gives those of the step before.
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None
        self._sent: tuple[int, torch.Tensor, Any] | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one forward pass of the step; NaN and infinity outlive any sum."""
        self._loss = loss.detach().clone() if self._loss is None else self._loss + loss.detach()

    def now(self, step: int, norm: Any) -> StepFigures:
        """End a step, and return its figures."""
        return StepFigures(step, *self._take(norm).tolist())

    def later(self, step: int, norm: Any) -> StepFigures | None:
        """End a step, and return the figures of the one before it."""
        figures = self._take(norm)
        before = self.flush()
        event, host = None, figures
        if figures.device.type == "cuda":
            host = torch.empty(2, pin_memory=True).copy_(figures, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent = (step, host, event)
        return before

    def flush(self) -> StepFigures | None:
        """Return the figures that were sent last, once they have come; None where none are on their way."""
        if self._sent is None:
            return None
        step, host, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()
        return StepFigures(step, *host.tolist())

    def _take(self, norm: Any) -> torch.Tensor:
        """Return loss and norm as one tensor (2,), and forget the loss."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model
        loss = torch.zeros(()) if self._loss is None else self._loss.float()
        self._loss = None
        return torch.stack((loss, torch.as_tensor(0.0 if norm is None else norm, device=loss.device).float()))


def first_bad(model: nn.Module) -> str:
    """Name the first tensor that is not finite: a parameter; else a gradient, in the order of the backward pass.

    Gradients are to be asked before they are clipped, which spreads what is wrong with one over all.
    """
    named = list(model.named_parameters())
    tensors = [(f"parameter {name}", parameter.detach()) for name, parameter in named]
    tensors += [(f"gradient of {name}", p.grad) for name, p in reversed(named) if p.grad is not None]
    for name, tensor in tensors:
        if bad := int((~torch.isfinite(tensor)).sum()):
            return f"{name} ({bad:,} of {tensor.numel():,} values)"
    return "none among parameters and gradients: the loss alone"


def rows_of_step(loader: Any, step: int, accumulation: int) -> list[int] | None:
    """Return which rows of the data set an optimiser step was made of, in this process.

    The order is drawn again: it depends on seed and epoch alone. None where it does not, or the data is a stream.

    Args:
        loader: The loader of the training data.
        step: Counted from 1, over all epochs.
        accumulation: Forward passes a step.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    epoch, index = divmod(step - 1, math.ceil(len(loader) / accumulation))
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    batches = itertools.islice(iter(sampler), index * accumulation, (index + 1) * accumulation)
    return [int(row) for batch in batches for row in batch]
