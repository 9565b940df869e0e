"""Words as tokens, long texts as windows that overlap at whole words, and both as rows with a label for each word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt_finetune.data.packing import IGNORED, Row
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.rows import Collator, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 10_000  # words tokenised at once


@dataclass(frozen=True)
class Window:
    """A text, or as much of a long one as the model reads at once.

    Args:
        ids: Tokens.
        columns: Of them, those that bear a word's tag.
        words: Numbers of these words in the text; neighbouring windows share words, but each is told in one of them.
    """

    ids: list[int]
    columns: list[int]
    words: list[int]


class WordEncoder:
    """Turns words into tokens, each with what joins it to the one before, so that none shares a token with another.

    Where spaces join them, these are the tokens of the whole text; in scripts without spaces, those of its words.

    Args:
        tokenizer: A fast tokenizer.
        joiner: What stands between words.
        max_length: Tokens of a window.
        overlap: Tokens that neighbouring windows share, about.
        label_subword: Which token of a word bears its tag: last or first.
        causal: The model reads to the right; else both ways.

    Raises:
        InputError: What the tokenizer puts around each text leaves no room.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        joiner: str,
        max_length: int,
        overlap: int,
        label_subword: str = "last",
        causal: bool = True,
    ) -> None:
        self.tokenizer, self.joiner = tokenizer, joiner
        self.last, self.causal = label_subword == "last", causal
        one, whole = self._tokens(["a"])[0], tokenizer("a")["input_ids"]
        begin = next((i for i in range(len(whole)) if whole[i : i + len(one)] == one), len(whole))
        self.before, self.after = whole[:begin], whole[begin + len(one) :]
        if joiner and self._tokens([f"a{joiner}a"])[0] == 2 * one:
            self.joiner = ""  # the tokenizer itself puts a space before each word
        self.room = max_length - len(self.before) - len(self.after)
        if self.room < 1:
            problem = f"the tokenizer puts {len(self.before) + len(self.after)} tokens around each text"
            raise InputError("data.max_length", max_length, problem, "Raise it")
        self.overlap = min(overlap, self.room - 1)
        self.known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the tokens of each word of each text."""
        keys = [[self.joiner * (place > 0) + word for place, word in enumerate(words)] for words in texts]
        new = sorted({key for some in keys for key in some} - self.known.keys())
        for begin in range(0, len(new), CHUNK):
            some = new[begin : begin + CHUNK]
            self.known |= dict(zip(some, self._tokens(some), strict=True))
        return [[self.known[key] for key in some] for some in keys]

    def windows(self, words: Sequence[list[int]]) -> tuple[list[Window], int]:
        """Part a text; a word without tokens is in no window.

        Args:
            words: Tokens of each.

        Returns:
            The windows, and how many tokens were cut off words that are longer than a window.
        """
        kept = [word[-self.room :] if self.last else word[: self.room] for word in words]
        sizes = [len(word) for word in kept]
        parts = part(sizes, self.room, self.overlap)
        owners = find_owners(parts, sizes, self.causal)
        found = []
        for number, (begin, end) in enumerate(parts):
            ids, columns, mine = list(self.before), [], []
            for word in range(begin, end):
                if owners[word] == number and sizes[word]:
                    columns.append(len(ids) + (sizes[word] - 1 if self.last else 0))
                    mine.append(word)
                ids += kept[word]
            if mine:
                found.append(Window(ids + self.after, columns, mine))
        return found, sum(map(len, words)) - sum(sizes)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def part(sizes: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Return the first word, and the one behind the last, of windows that cover a text.

    Args:
        sizes: Tokens of each word, at most `room`.
        room: Tokens of a window.
        overlap: Tokens that neighbours share at most, whole words.
    """
    parts: list[tuple[int, int]] = []
    begin = end = 0
    while end < len(sizes) or not parts:
        used = sum(sizes[begin:end])
        while end < len(sizes) and used + sizes[end] <= room:
            used += sizes[end]
            end += 1
        parts.append((begin, end))
        if end < len(sizes):
            # what comes next must fit behind what is shared, else the new window would bring nothing new
            shared, limit, begin = 0, min(overlap, room - sizes[end]), end
            while shared + sizes[begin - 1] <= limit and begin - 1 > parts[-1][0]:
                begin -= 1
                shared += sizes[begin]
    return parts


def find_owners(parts: Sequence[tuple[int, int]], sizes: Sequence[int], causal: bool) -> np.ndarray:
    """Return for each word the window that shows most around it (N,).

    Reading to the right, that is the one with most tokens before it; both ways, the one whose nearer edge is furthest.
    Where the text itself begins or ends, nothing is cut off.

    Args:
        parts: From `part`.
        sizes: Tokens of each word.
        causal: The model reads to the right.
    """
    ends = np.cumsum(sizes, dtype=np.float64)
    starts = ends - np.asarray(sizes)
    best, owners = np.full(len(sizes), -1.0), np.zeros(len(sizes), np.int64)
    for number, (begin, end) in enumerate(parts):
        mine = slice(begin, end)
        left = starts[mine] - starts[begin] if begin else np.full(end - begin, np.inf)
        right = ends[end - 1] - ends[mine] if end < len(sizes) else np.full(end - begin, np.inf)
        around = left if causal else np.minimum(left, right)
        better = around > best[mine]
        owners[mine][better] = number
        best[mine][better] = around[better]
    return owners


class TagRows(Dataset):
    """Windows as rows, with a label where a word's tag stands. Holds 8 bytes a token.

    Args:
        windows: The windows.
        labels: Of the words of each, as in `Window.words`.
        width: Tokens of a packed row; None puts each window into a row of its own.
        numbered: Add each window's number, so that what the model says of it finds the way back.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        labels: Iterable[np.ndarray],
        width: int | None = None,
        numbered: bool = False,
    ) -> None:
        sizes = np.array([len(window.ids) for window in windows], np.int64)
        self.starts = np.concatenate([[0], sizes.cumsum()])
        self.ids = np.array([token for window in windows for token in window.ids], np.int32)
        self.labels = np.full(len(self.ids), IGNORED, np.int32)
        for start, window, mine in zip(self.starts, windows, labels, strict=False):
            self.labels[start + np.array(window.columns)] = mine
        self.width, self.numbered = width, numbered
        self.rows = [[i] for i in range(len(windows))] if width is None else pack(sizes.tolist(), width)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Return `input_ids` and `labels`, int64 (T,); packed, `position_ids` (T,); numbered, `numbers` (1,)."""
        places = [slice(self.starts[n], self.starts[n + 1]) for n in self.rows[index]]
        row = {
            "input_ids": torch.from_numpy(np.concatenate([self.ids[place] for place in places]).astype(np.int64)),
            "labels": torch.from_numpy(np.concatenate([self.labels[place] for place in places]).astype(np.int64)),
        }
        if self.width is not None:
            row["position_ids"] = torch.cat([torch.arange(place.stop - place.start) for place in places])
        if self.numbered:
            row["numbers"] = torch.tensor(self.rows[index])
        return row

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return len(self.ids)


class TagCollator:
    """Stacks rows into a batch, padded on the right: packed ones to their full width, others to the longest.

    Args:
        pad_id: Fills unused places.
        width: Tokens of a packed row.
    """

    def __init__(self, pad_id: int, width: int) -> None:
        self.pad_id, self.width = pad_id, width
        self.packed, self.padded = Collator(pad_id, width), Collator(pad_id)

    def __call__(self, rows: Sequence[Row]) -> Row:
        """Return what `Collator` does, and `numbers` (B,) of rows that have them."""
        batch = (self.packed if "position_ids" in rows[0] else self.padded)(rows)
        if "numbers" in rows[0]:
            batch["numbers"] = torch.cat([row["numbers"] for row in rows])
        return batch
