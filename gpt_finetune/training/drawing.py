"""Collators that draw random numbers: the same ones for the same rows of an epoch, whoever collates them and when."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash

Collate = Callable[[list[Any]], Any]
_PLAIN = (str, bytes, int, float, type(None))


class SeededCollator:
    """A collator whose random numbers follow from the seed, the epoch and the rows of the batch.

    A loader fetches ahead, in this process or in workers that share the batches by turns. What a collator draws there
    (masks, noise, cuts) would be other numbers after a resume, and would move those of dropout. Random numbers are
    those of `random`, numpy and torch on the CPU; a generator of the collator's own is its own affair.

    Args:
        collate: The collator.
        seed: The run's.
    """

    def __init__(self, collate: Collate, seed: int) -> None:
        self.collate, self.seed = collate, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay see it change

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch's batches come next."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: list[Any]) -> Any:
        """Collate rows, with random numbers of their own; those of training go on as if none had been drawn."""
        digest = xxhash.xxh3_64(seed=self.seed)
        for part in _contents((int(self._epoch), rows)):
            digest.update(part)
        with _numbers_from(digest.intdigest()):
            return self.collate(rows)


def draws(collate: Collate) -> bool:
    """Tell whether a collator may draw random numbers. Those of this package do not."""
    module = getattr(collate, "__module__", None) or ""
    return module.partition(".")[0] != __name__.partition(".")[0]


@contextmanager
def _numbers_from(seed: int) -> Iterator[None]:
    """Let random numbers follow from a seed; then go on with those from before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _contents(value: Any) -> Iterator[bytes]:
    """Yield what values are made of; of a tensor its own numbers, not the storage that it is a view of."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _contents((key, item))
    elif isinstance(value, torch.Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield repr((value.dtype, value.shape)).encode()
        yield value.tobytes()
    elif isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(isinstance(v, _PLAIN) for v in value)):
        yield repr(value).encode()
    elif isinstance(value, Sequence):
        for item in value:
            yield from _contents(item)
    else:
        yield pickle.dumps(value)
