"""Texts as tokens, and as rows: one each, or several packed into one without seeing each other; and rows as batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt_finetune.data.packing import IGNORED, Row
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.rows import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000  # texts tokenised at once


class TextEncoder:
    """Turns texts into tokens as the tokenizer does by itself, so that transformers' pipelines see the same.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Tokens that are kept of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, texts: Sequence[str], origins: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Encode texts.

        Args:
            texts: The texts.
            origins: File and row of each, for error messages.

        Returns:
            What is kept of each, and how many tokens each has as a whole.

        Raises:
            InputError: A text becomes no token.
        """
        kept: list[list[int]] = []
        whole: list[int] = []
        for begin in range(0, len(texts), CHUNK):
            some = list(texts[begin : begin + CHUNK])
            ids = self.tokenizer(some, verbose=False)["input_ids"]
            sizes = [len(row) for row in ids]
            for i in (i for i, size in enumerate(sizes) if size > self.max_length):
                # asked again: what the tokenizer puts at the end of a text stays there
                ids[i] = self.tokenizer(some[i], truncation=True, max_length=self.max_length)["input_ids"]
            kept += ids
            whole += sizes
        for row, text, origin in zip(kept, texts, origins, strict=True):
            if not row:
                raise InputError(origin, text, "the tokenizer makes no token of it", "Repair or remove the row")
        return kept, whole


class LabelledRows(Dataset):
    """Texts with labels as rows. Holds 4 bytes a token.

    Args:
        texts: Tokens of each text.
        labels: Of each text: (N,) or (N, L).
        width: Tokens of a packed row; None puts each text into a row of its own.
        numbered: Add each text's number, so that what the model says of it finds the way back.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], labels: np.ndarray, width: int | None = None, numbered: bool = False
    ) -> None:
        sizes = np.array([len(text) for text in texts], np.int64)
        self.starts = np.concatenate([[0], sizes.cumsum()])
        self.ids = np.array([token for text in texts for token in text], np.int32)
        self.labels, self.width, self.numbered = labels, width, numbered
        self.rows = [[i] for i in range(len(texts))] if width is None else pack(sizes.tolist(), width)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Return `input_ids` (T,), `labels` (N,) or (N, L); packed, `position_ids` (T,); numbered, `numbers` (N,)."""
        numbers = self.rows[index]
        parts = [self.ids[self.starts[n] : self.starts[n + 1]] for n in numbers]
        row = {
            "input_ids": torch.from_numpy(np.concatenate(parts).astype(np.int64)),
            "labels": torch.from_numpy(self.labels[numbers]),
        }
        if self.width is not None:
            row["position_ids"] = torch.cat([torch.arange(len(part)) for part in parts])
        if self.numbered:
            row["numbers"] = torch.tensor(numbers)
        return row

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return len(self.ids)


class LabelCollator:
    """Stacks rows into a batch, padded on the right.

    Args:
        pad_id: Fills unused places.
        width: Tokens of a packed row, to which these are filled up.
    """

    def __init__(self, pad_id: int, width: int) -> None:
        self.pad_id, self.width = pad_id, width

    def __call__(self, rows: Sequence[Row]) -> Row:
        """Return `input_ids` and `attention_mask` (B, T), `labels` and `numbers` in reading order.

        Of packed rows, `position_ids` (B, T) instead of the mask. What fills one is a text more, whose label counts for
        nothing.
        """
        sizes = [len(row["input_ids"]) for row in rows]
        packed = "position_ids" in rows[0]
        width = self.width if packed else max(sizes)
        ids = torch.full((len(rows), width), self.pad_id)
        for i, row in enumerate(rows):
            ids[i, : sizes[i]] = row["input_ids"]
        batch = {"input_ids": ids, "labels": torch.cat([self._labels(row, packed) for row in rows])}
        if "numbers" in rows[0]:
            batch["numbers"] = torch.cat([row["numbers"] for row in rows])
        if packed:
            fills = [torch.arange(width - size) for size in sizes]
            parts = [torch.cat((row["position_ids"], fill)) for row, fill in zip(rows, fills, strict=True)]
            return batch | {"position_ids": torch.stack(parts)}
        return batch | {"attention_mask": (torch.arange(width) < torch.tensor(sizes)[:, None]).long()}

    def _labels(self, row: Row, packed: bool) -> torch.Tensor:
        labels = row["labels"]
        if not packed or len(row["input_ids"]) == self.width:
            return labels
        return torch.cat((labels, torch.full_like(labels[:1], IGNORED)))
