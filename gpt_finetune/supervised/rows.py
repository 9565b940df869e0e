"""Examples as rows: one each, or several packed into one without seeing each other; and rows as batches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt_finetune.data.packing import IGNORED, Row
from gpt_finetune.supervised.encoding import Tokens


class ExampleRows(Dataset):
    """Rows of examples. Holds 5 bytes a token.

    Args:
        examples: All examples that occur.
        order: Numbers of the examples of an epoch; one that is seen twice stands there twice.
        width: Tokens of a packed row; None puts each example into a row of its own.

    Attributes:
        rows: Numbers of the examples in each row.
        lengths: Tokens in each row, padding not counted; for batches of similar length.
    """

    def __init__(self, examples: Sequence[Tokens], order: Sequence[int], width: int | None = None) -> None:
        sizes = np.array([len(example.ids) for example in examples], np.int64)
        self.starts = np.concatenate([[0], sizes.cumsum()])
        self.ids = np.concatenate([example.ids for example in examples] or [np.empty(0, np.int32)])
        self.learned = np.concatenate([example.learned for example in examples] or [np.empty(0, bool)])
        self.width = width
        if width is None:
            self.rows = [[number] for number in order]
        else:
            packed = pack([int(sizes[number]) for number in order], width)
            self.rows = [[order[place] for place in row] for row in packed]
        self.lengths = [int(sizes[row].sum()) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Return `input_ids` and `labels`, int64 (T,); of packed ones also `position_ids`, which restart at each."""
        parts = [self.example(number) for number in self.rows[index]]
        ids = np.concatenate([part.ids for part in parts]).astype(np.int64)
        learned = np.concatenate([part.learned for part in parts])
        row = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(np.where(learned, ids, IGNORED))}
        if self.width is not None:
            row["position_ids"] = torch.cat([torch.arange(len(part.ids)) for part in parts])
        return row

    def example(self, number: int) -> Tokens:
        """Return one example, wherever it stands."""
        place = slice(self.starts[number], self.starts[number + 1])
        return Tokens(self.ids[place], self.learned[place])

    @property
    def targets(self) -> int:
        """Targets of an epoch, each copy of an example counted."""
        return int(sum(self.example(number).learned.sum() for row in self.rows for number in row))


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Put items into as few rows as best-fit decreasing finds: each into the fullest row that has room for it.

    Johnson et al. 1974, SIAM J. Comput. 3(4): at most 11/9 of the least number of rows, and a few. No item is cut.

    Args:
        lengths: Tokens of each item, at most `width`.
        width: Tokens of a row.

    Returns:
        The items of each row by their numbers, the longest first.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> rows that have as many
    rooms: list[int] = []  # its keys, sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            row, room = len(rows), width
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(item)
        room -= lengths[item]
        if room:
            if room not in by_room:
                insort(rooms, room)
            by_room.setdefault(room, []).append(row)
    return rows


class Collator:
    """Stacks rows into a batch, padded on the right.

    Args:
        pad_id: Fills unused places.
        width: Tokens of a packed row, to which these are filled up; None pads to the longest row of the batch.
    """

    def __init__(self, pad_id: int, width: int | None = None) -> None:
        self.pad_id, self.width = pad_id, width

    def __call__(self, rows: Sequence[Row]) -> Row:
        """Return `input_ids`, `labels`, and `attention_mask`; for packed rows `position_ids` instead of the mask.

        All are int64 (B, T). With the mask beside them, the positions would not isolate the examples in models that
        look at them only without one; what fills a packed row is one more example, seen by no other.
        """
        sizes = [len(row["input_ids"]) for row in rows]
        width = self.width or max(sizes)
        fills = [torch.arange(width - size) for size in sizes]
        batch = {
            "input_ids": _stack(rows, "input_ids", [torch.full_like(fill, self.pad_id) for fill in fills]),
            "labels": _stack(rows, "labels", [torch.full_like(fill, IGNORED) for fill in fills]),
        }
        if self.width is not None:
            return batch | {"position_ids": _stack(rows, "position_ids", fills)}
        return batch | {"attention_mask": (torch.arange(width) < torch.tensor(sizes)[:, None]).long()}


def _stack(rows: Sequence[Row], name: str, fills: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.cat([row[name], fill]) for row, fill in zip(rows, fills, strict=True)])
