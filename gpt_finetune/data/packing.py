"""Documents as rows of tokens: a stream on disk, cut into blocks that overlap by one token.

A stream is `EOS doc EOS doc EOS ...`. Blocks of T tokens start every T - 1 tokens, so that under the model's shift
by one every token of every document, its EOS included, is a target exactly once: the first token of a block is
context only, and was the last target of the block before. The last block is padded; nothing is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100  # the label that torch's cross entropy leaves out
Row = dict[str, Tensor]


class TokenWriter:
    """Writes one stream to a file of raw unsigned integers. Use as a context manager.

    Args:
        file: File to create.
        dtype: Type of one token, uint16 or uint32.
        eos_id: Token that opens the stream and follows each document.
        pad_id: Token that fills the last block.
        block_size: Tokens per block, at least 2.
    """

    def __init__(self, file: Path, dtype: np.dtype, eos_id: int, pad_id: int, block_size: int) -> None:
        self.file, self.dtype, self.block_size = file, dtype, block_size
        self.eos = np.array([eos_id], dtype)
        self.pad_id = pad_id
        self.tokens = 0  # written so far, the opening EOS included, padding not

    def __enter__(self) -> TokenWriter:
        self.stream = self.file.open("wb")
        self._append(self.eos)
        return self

    def write(self, documents: Sequence[np.ndarray]) -> None:
        """Append documents, each followed by its EOS."""
        if documents:
            self._append(join_documents(documents, self.eos))

    def __exit__(self, *exception: object) -> None:
        try:
            padding = -(self.tokens - 1) % (self.block_size - 1)
            self.stream.write(np.full(padding, self.pad_id, self.dtype).data)
            self.stream.flush()
            os.fsync(self.stream.fileno())
        finally:
            self.stream.close()

    def _append(self, ids: np.ndarray) -> None:
        self.stream.write(ids.data)
        self.tokens += len(ids)


def join_documents(documents: Sequence[np.ndarray], eos: np.ndarray) -> np.ndarray:
    """Concatenate documents with `eos`, an array of one token, behind each."""
    parts = [eos] * (2 * len(documents))
    parts[::2] = documents
    return np.concatenate(parts)


class PackedDataset(Dataset):
    """Blocks of one stream. Pickles by path and maps the file in each process, so workers share its pages.

    Args:
        file: What `TokenWriter` wrote.
        dtype: Name of the token type in the file.
        tokens: Tokens in the stream: opening EOS included, padding not.
        block_size: Tokens per block (T).
    """

    def __init__(self, file: Path, dtype: str, tokens: int, block_size: int) -> None:
        self.file, self.dtype, self.tokens, self.block_size = file, dtype, tokens, block_size
        self.stride = block_size - 1
        self._blocks: np.ndarray | None = None

    def __len__(self) -> int:
        return -(-(self.tokens - 1) // self.stride)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Return many rows at once: `input_ids` and `labels`, int64 of shape (T,)."""
        return to_rows(*self.gather(np.asarray(indices)))

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of blocks and how many of each are no padding.

        Args:
            indices: Block numbers (B,); negative ones count from the end.

        Returns:
            Ids int64 (B, T) and lengths int64 (B,).

        Raises:
            IndexError: There is no such block.
        """
        if self._blocks is None:
            stream = np.memmap(self.file, self.dtype, mode="r")
            self._blocks = sliding_window_view(np.asarray(stream), self.block_size)[:: self.stride]  # (N, T)
        ids = self._blocks[indices].astype(np.int64)
        lengths = np.full(len(ids), self.block_size)
        lengths[indices % len(self) == len(self) - 1] -= self.padding
        return ids, lengths

    @property
    def padding(self) -> int:
        """Padding tokens in the last block."""
        return len(self) * self.stride - (self.tokens - 1)

    def targets(self, rows: np.ndarray) -> int:
        """Count the tokens that are a target in these rows."""
        return len(rows) * self.stride - self.padding * int((rows == len(self) - 1).sum())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_blocks": None}


class MixedDataset(Dataset):
    """Several packed streams as one, each seen as often as its weight says.

    Args:
        parts: The streams.
        weights: Times per epoch that each is seen: whole copies, and for the rest a fixed random subset of blocks.
        seed: Decides the subsets.
    """

    def __init__(self, parts: Sequence[PackedDataset], weights: Sequence[float], seed: int = 0) -> None:
        self.parts = list(parts)
        self.rows = [choose_rows(len(p), w, (seed, i)) for i, (p, w) in enumerate(zip(parts, weights, strict=True))]
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        self.index = np.concatenate(
            [rows + start for rows, start in zip(self.rows, self.starts[:-1], strict=True)] or [np.empty(0, np.int64)]
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Return many rows at once: `input_ids` and `labels`, int64 of shape (T,)."""
        wanted = self.index[np.asarray(indices)]
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        ids = np.empty((len(wanted), self.parts[0].block_size), np.int64)
        lengths = np.empty(len(wanted), np.int64)
        for owner in set(owners.tolist()):
            here = owners == owner
            ids[here], lengths[here] = self.parts[owner].gather(wanted[here] - self.starts[owner])
        return to_rows(ids, lengths)


def choose_rows(count: int, weight: float, seed: Sequence[int]) -> np.ndarray:
    """Return the block numbers of one epoch: `floor(weight)` copies of all, and a random subset for the rest."""
    copies = int(weight)
    some = round((weight - copies) * count)
    if count and not copies:
        some = max(some, 1)  # a source that was named never vanishes
    subset = np.sort(np.random.default_rng(seed).permutation(count)[:some])
    return np.concatenate([np.tile(np.arange(count), copies), subset])


class Rows(Sequence[Row]):
    """Rows of a batch that are still whole: making each of them by itself would cost more than all else.

    Args:
        batch: Each value of shape (B, T).
    """

    def __init__(self, batch: Row) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        chosen = {key: value[index] for key, value in self.batch.items()}
        return Rows(chosen) if isinstance(index, slice) else chosen


def to_rows(ids: np.ndarray, lengths: np.ndarray) -> Rows:
    """Make rows of ids (B, T); labels leave out the padding and the first token, which is never a target.

    Without the first label, counting labels gives the number of targets whether or not the counter shifts them.
    """
    labels = ids.copy()
    labels[:, 0] = IGNORED
    for row in np.flatnonzero(lengths < ids.shape[1]):
        labels[row, lengths[row] :] = IGNORED
    return Rows({"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)})


def collate(rows: Sequence[Row]) -> Row:
    """Stack rows into a batch: each value becomes (B, T)."""
    if isinstance(rows, Rows):
        return rows.batch
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
