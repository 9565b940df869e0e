"""Rows with questions, contexts and answers: forms that rows have, and answers found where they really stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.answer_config import AnswerDataConfig
from gpt_finetune.tasks.sources import column_of, text_in

_REPAIR = "Repair or remove the row"


@dataclass(frozen=True)
class Asked:
    """A question on a text.

    Args:
        question: The question.
        context: The text.
        answers: Right answers as the context has them; none where it holds none.
        starts: Where each begins, in characters.
        missing: An answer that the row gives and its context has not.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    missing: str | None = None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where the answers begin and end."""
        return [(start, start + len(text)) for text, start in zip(self.answers, self.starts, strict=True)]


class AnswerReader:
    """Reads rows, and counts what it mends.

    Args:
        config: The columns, and what to do with answers that the context has not.
    """

    def __init__(self, config: AnswerDataConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()

    def __call__(self, record: Record) -> tuple[str, Asked]:
        """Return what makes two rows the same, and the question.

        Raises:
            InputError: The row cannot be used.
        """
        question, context = ask_of(record, self.config.question_column, self.config.context_column)
        texts, starts = self._given(record)
        found: list[tuple[str, int]] = []
        for place, text in enumerate(texts):
            start = self._place(context, text, starts[place] if starts else None, record.origin)
            if start is None:
                return f"{question}\n{context}", Asked(question, context, (), (), missing=text)
            found.append((text, start))
        told = list(dict.fromkeys(found))
        asked = Asked(question, context, tuple(text for text, _ in told), tuple(start for _, start in told))
        return f"{question}\n{context}", asked

    def _given(self, record: Record) -> tuple[list[str], list[int] | None]:
        """Return a row's answers, and where it says that they begin."""
        names = self.config
        value = column_of(record, names.answers_column, "data.answers_column")
        starts = record.value.get(names.start_column)
        if isinstance(value, dict):
            if "text" not in value:
                problem = "it is a mapping without 'text', where SQuAD has the answers"
                raise InputError(record.origin, list(value), problem, _REPAIR)
            value, starts = value["text"], value.get("answer_start")
        texts = [value] if isinstance(value, str) else [] if value is None else value
        if isinstance(starts, int) and not isinstance(starts, bool):
            starts = [starts]
        if not isinstance(texts, list):
            problem = f"the answers are {type(texts).__name__}, not a list of texts"
            raise InputError(record.origin, value, problem, _REPAIR)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                remedy = "Give a text, or an empty list where there is no answer"
                raise InputError(record.origin, text, "it is no answer, or an empty one", remedy)
        if starts is None:
            return texts, None
        if not isinstance(starts, list) or len(starts) != len(texts) or any(type(start) is not int for start in starts):
            problem = f"it is to say where each of {len(texts)} answers begins, in characters"
            raise InputError(record.origin, starts, problem, _REPAIR)
        return texts, starts

    def _place(self, context: str, text: str, start: int | None, origin: str) -> int | None:
        """Return where an answer stands: as said, else where alone it does; None where that is to be counted."""
        if start is not None and start >= 0 and context.startswith(text, start):
            return start
        first = context.find(text)
        if start is None and first >= 0:
            return first
        if first >= 0 and context.find(text, first + 1) < 0:
            self.counts["moved"] += 1
            return first
        if self.config.on_missing == "drop":
            return None
        said = "it does not stand in the context" if first < 0 else f"it stands several times, but not at {start}"
        raise InputError(origin, text, said, f"{_REPAIR}, or set data.on_missing=drop")


def ask_of(record: Record, question: str, context: str) -> tuple[str, str]:
    """Return a row's question and context.

    Raises:
        InputError: One is missing, or empty.
    """
    parts: list[Any] = []
    for name, key in ((question, "data.question_column"), (context, "data.context_column")):
        parts.append(text_in(column_of(record, name, key), f"{record.origin}, {name}"))
    return parts[0].strip(), parts[1]
