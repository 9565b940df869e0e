"""Questions on texts as rows of tokens, long texts as windows; and answers as the best spans of what a model says.

A row is question, end of line, context, end token. A decoder reads the question first, so that each token of the
context knows it; and the end token alone has seen all, so it is where "no answer" starts and ends (BERT's first token
would know nothing here).

Shapes: T tokens of a row, L of them in the context, N spans that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt_finetune.data.packing import Row
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.answer_config import SpanConfig
from gpt_finetune.tasks.windows import windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n"
CHUNK = 1000  # texts tokenised at once


@dataclass(frozen=True)
class Window:
    """A question with its context, or with as much of a long one as fits.

    Args:
        ids: Tokens of the row (T,).
        bounds: Columns of the row where the context begins and ends.
        offsets: Characters of the whole context that each of its tokens here stands for (L, 2).
        start: Column where the answer starts; without one, the last of the row.
        end: Column of its last token, the same.
    """

    ids: np.ndarray
    bounds: tuple[int, int]
    offsets: np.ndarray
    start: int
    end: int

    @property
    def has_answer(self) -> bool:
        """Whether the answer stands here."""
        return self.start < self.bounds[1]

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Return where a span of columns begins and ends in the context."""
        first = self.bounds[0]
        return int(self.offsets[start - first, 0]), int(self.offsets[end - first, 1])


@dataclass(frozen=True)
class Tokenized:
    """A question and its context as tokens, the question with what the tokenizer puts in front of each text.

    Args:
        question: (Q,), cut to as many as fit.
        context: (L,).
        offsets: Characters of each token of the context (L, 2).
        cut: How many tokens of the question are left out.
    """

    question: np.ndarray
    context: np.ndarray
    offsets: np.ndarray
    cut: int


class PairEncoder:
    """Turns questions and contexts into windows.

    Args:
        tokenizer: A fast one, which knows the characters of its tokens.
        max_length: Tokens of a row.
        question_length: Tokens that are kept of a question.
        overlap: Tokens of the context that neighbouring windows share at least.

    Raises:
        InputError: The tokenizer is a slow one, or has no token that could end a row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, question_length: int, overlap: int) -> None:
        name = type(tokenizer).__name__
        if not tokenizer.is_fast:
            remedy = "Give one that has a tokenizer.json"
            raise InputError("tokenizer", name, "it does not say which characters a token stands for", remedy)
        if tokenizer.eos_token_id is None:
            raise InputError("tokenizer", name, "it has no end token", "Give one that has")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.question_length, self.overlap = question_length, overlap
        one, whole = self._ids(["a"])[0], tokenizer("a")["input_ids"]
        self.before = whole[: next((i for i in range(len(whole)) if whole[i : i + len(one)] == one), 0)]
        self.separator = self._ids([SEPARATOR])[0]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def tokenize(self, questions: Sequence[str], contexts: Sequence[str]) -> list[Tokenized]:
        """Return tokens of each question and context; equal contexts share theirs."""
        known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        distinct = list(dict.fromkeys(contexts))
        for begin in range(0, len(distinct), CHUNK):
            some = distinct[begin : begin + CHUNK]
            made = self.tokenizer(some, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for text, ids, offsets in zip(some, made["input_ids"], made["offset_mapping"], strict=True):
                known[text] = np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2)
        found = []
        for begin in range(0, len(questions), CHUNK):
            for number, ids in enumerate(self._ids(list(questions[begin : begin + CHUNK])), begin):
                kept = np.array([*self.before, *ids[: self.question_length], *self.separator], np.int32)
                found.append(Tokenized(kept, *known[contexts[number]], max(0, len(ids) - self.question_length)))
        return found

    def windows(self, row: Tokenized, spans: Sequence[tuple[int, int]] = ()) -> list[Window]:
        """Part a row.

        Args:
            row: What to part.
            spans: Where its answers begin and end, in characters. The first that a window holds is its answer.

        Returns:
            As many rows as the context needs.

        Raises:
            InputError: There is no room for the context.
        """
        first = len(row.question)
        room = self.max_length - first - 1
        if room <= self.overlap:
            problem = f"the question takes {first} tokens, and windows of a context share {self.overlap}"
            raise InputError("max_length", self.max_length, problem, "Raise it")
        columns = [token_span(row.offsets, *span) for span in spans]
        found = []
        for begin, end in windows(len(row.context), room, self.overlap):
            held = ((s, e) for s, e in columns if begin <= s and e < end)
            last = first + end - begin
            start, stop = next(((s - begin + first, e - begin + first) for s, e in held), (last, last))
            ids = np.concatenate([row.question, row.context[begin:end], [self.tokenizer.eos_token_id]])
            found.append(Window(ids.astype(np.int32), (first, last), row.offsets[begin:end], start, stop))
        return found


def token_span(offsets: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """Return the first and the last token that have a character of a span.

    Args:
        offsets: Characters of each token (L, 2).
        begin: Where the span begins.
        end: Where it ends, exclusively.
    """
    return int((offsets[:, 1] > begin).argmax()), int(len(offsets) - 1 - (offsets[::-1, 0] < end).argmax())


class SpanRows(Dataset):
    """Windows as rows.

    Args:
        windows: The windows.
        numbered: Add each window's number and bounds, so that what the model says of it can be read.
    """

    def __init__(self, windows: Sequence[Window], numbered: bool = False) -> None:
        self.windows, self.numbered = list(windows), numbered

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Row:
        """Return `input_ids` (T,), `start_positions`, `end_positions` (); numbered, `numbers` () and `bounds` (2,)."""
        window = self.windows[index]
        row = {
            "input_ids": torch.from_numpy(window.ids.astype(np.int64)),
            "start_positions": torch.tensor(window.start),
            "end_positions": torch.tensor(window.end),
        }
        return row | {"numbers": torch.tensor(index), "bounds": torch.tensor(window.bounds)} if self.numbered else row


class SpanCollator:
    """Stacks rows into a batch, padded on the right.

    Args:
        pad_id: Fills unused places.
        width: Tokens of the longest row that there may be.
    """

    def __init__(self, pad_id: int, width: int) -> None:
        self.pad_id, self.width = pad_id, width

    def __call__(self, rows: Sequence[Row]) -> Row:
        """Return `input_ids` and `attention_mask` (B, T), and whatever else rows have, stacked."""
        sizes = torch.tensor([len(row["input_ids"]) for row in rows])
        ids = torch.full((len(rows), int(sizes.max())), self.pad_id)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row["input_ids"])] = row["input_ids"]
        others = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < sizes[:, None]).long(), **others}


def best_spans(start: np.ndarray, end: np.ndarray, bounds: tuple[int, int], config: SpanConfig) -> np.ndarray:
    """Return the likeliest spans of a context, the best first: columns of first and last token, and score (N, 3).

    Args:
        start: Score of each token of the row as the first of an answer (T,).
        end: As the last (T,).
        bounds: Columns where the context begins and ends.
        config: How long a span may be, and how many are wanted.
    """
    first, last = bounds
    width = min(config.max_answer_tokens, last - first)
    if not width:
        return np.empty((0, 3))
    ends = np.pad(end[first:last].astype(np.float64), (0, width - 1), constant_values=-np.inf)
    scores = start[first:last, None] + np.lib.stride_tricks.sliding_window_view(ends, width)  # (L, width)
    flat = scores.reshape(-1)
    few = min(config.n_best, int(np.isfinite(flat).sum()))
    best = np.argsort(-flat, kind="stable")[:few]
    return np.stack([best // width + first, best // width + best % width + first, flat[best]], -1)


def read_row(
    start: np.ndarray, end: np.ndarray, bounds: tuple[int, int], right: tuple[int, int], config: SpanConfig
) -> np.ndarray:
    """Return what a model says of one row: the best spans and before them no answer (1 + N, 3).

    A line is first and last column and log-probability, spans as `best_spans` finds them; the first line has the loss
    instead of the first column.

    Args:
        start: Logits of starts (T,), without padding.
        end: Logits of ends (T,).
        bounds: Columns where the context begins and ends; no answer stands at the latter.
        right: Columns of the right answer, for the loss.
        config: How spans are chosen.
    """
    starts, ends = (side - np.logaddexp.reduce(side) for side in (start.astype(np.float64), end.astype(np.float64)))
    loss = -(starts[right[0]] + ends[right[1]]) / 2
    none = np.array([[loss, bounds[1], starts[bounds[1]] + ends[bounds[1]]]])
    return np.concatenate([none, best_spans(starts, ends, bounds, config)])


@dataclass(frozen=True)
class Said:
    """What a model answers.

    Args:
        answer: Text of the context, empty for no answer.
        score: Its probability in its window; of no answer, the least of all windows.
        start: Where it begins in the context; None without an answer.
        end: Where it ends, exclusively.
        n_best: Spans of the context in the order of how much likelier than no answer they are, the best first.
        loss: Mean loss of start and end, summed over windows.
    """

    answer: str
    score: float
    start: int | None
    end: int | None
    n_best: list[dict[str, Any]]
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        place = {"start": self.start, "end": self.end}
        return {"answer": self.answer, "score": round(self.score, 6), **place, "n_best": self.n_best}


def decide(context: str, rows: Sequence[tuple[Window, np.ndarray]], config: SpanConfig) -> Said:
    """Choose an answer among those of all windows of a context.

    A span counts by how much likelier it is than no answer in its own window: of two windows, that which holds the
    answer is sure of it, and the other one is sure that it holds none.

    Args:
        context: The text.
        rows: Its windows, each with what `read_row` says of it.
        config: How many answers are wanted, and how sure they must be.
    """
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for window, said in rows:
        for first, last, likelihood in said[1:].tolist():
            begin, end = window.characters(int(first), int(last))
            text = context[begin:end]
            begin += len(text) - len(text.lstrip())
            place, odds = (begin, begin + len(text.strip())), likelihood - said[0, 2]
            if text.strip() and odds > found.get(place, (-np.inf, 0.0))[0]:
                found[place] = odds, likelihood
    best = sorted(found, key=lambda place: -found[place][0])[: config.n_best]
    listed = [
        {"answer": context[slice(*place)], "score": round(float(np.exp(found[place][1])), 6), "start": place[0]}
        | {"end": place[1], "odds": round(found[place][0], 4)}
        for place in best
    ]
    loss = float(sum(said[0, 0] for _, said in rows))
    if best and found[best[0]][0] > config.threshold:
        score = float(np.exp(found[best[0]][1]))
        return Said(context[slice(*best[0])], score, *best[0], listed, loss)
    return Said("", float(np.exp(min(said[0, 2] for _, said in rows))), None, None, listed, loss)
