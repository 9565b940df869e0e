"""The order of rows of similar length: of the seed and the epoch alone, so that a resumed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedSampler(LengthGroupedSampler):
    """transformers' sampler, whose order does not depend on what else has drawn random numbers.

    Theirs draws from torch's global state: a run resumed within an epoch skips other rows than it has trained on, when
    anything (an evaluation before the first step, say) has drawn since the seed was set.

    Args:
        batch_size: Rows of an optimiser step.
        lengths: Of each row.
        seed: Of the order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch's order comes next; Trainer does."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()
