"""What the user can say about questions with answers: plain dataclasses that import in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig

# Tokens that may stand around question and context: what the tokenizer puts there, the line's end, the end token.
SPECIALS = 4


@dataclass
class AnswerDataConfig(TaskDataConfig):
    """Which questions on which contexts to learn from, and how they become rows of tokens.

    All questions on one context are on one side of the split, unless `group_column` says otherwise.

    Args:
        question_column: Column of the question.
        context_column: Column of the text that may hold the answer.
        answers_column: Column of the answers: a list of texts that stand in the context, or one text; an empty list or
            null where the context holds none; or SQuAD's `{"text": [...], "answer_start": [...]}`.
        start_column: Column of where the answers begin, in characters, as many as answers. Rows without it, or with
            null, have each answer where it stands first.
        on_missing: A row whose answer does not stand in its context: refuse it, or drop and count it.
        question_length: Tokens that are kept of a question.
        overlap: Tokens that neighbouring windows share at least, where a context is longer than max_length leaves room
            for; give it as many as an answer has.
        other_windows: What the windows of a context teach that do not hold an answer which another one has: that there
            is no answer, or nothing.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    start_column: str = "start"
    on_missing: Literal["refuse", "drop"] = "refuse"
    question_length: int = 64
    overlap: int = 64
    other_windows: Literal["no_answer", "skip"] = "no_answer"

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        super().validate(prefix)
        names: dict[str, str] = {}
        for key in ("question_column", "context_column", "answers_column", "start_column"):
            other = names.setdefault(getattr(self, key), key)
            if other != key:
                problem = f"{prefix}.{other} names the same column"
                raise InputError(f"{prefix}.{key}", getattr(self, key), problem, "Name another")
        for key, least in (("question_length", 1), ("overlap", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{prefix}.{key}", getattr(self, key), f"it is below {least}", f"Give {least} or more")
        least = self.question_length + self.overlap + SPECIALS + 1
        if self.max_length < least:
            problem = f"question_length, overlap and what stands between leave no room below {least}"
            raise InputError(f"{prefix}.max_length", self.max_length, problem, "Raise it, or lower the others")


@dataclass
class SpanConfig:
    """How an answer is chosen.

    Args:
        max_answer_tokens: An answer has no more tokens than this.
        n_best: How many answers are kept of a question, the best first.
        threshold: How much likelier than no answer, in nats, an answer must be to be given.
    """

    max_answer_tokens: int = 30
    n_best: int = 5
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        for name in ("max_answer_tokens", "n_best"):
            if getattr(self, name) < 1:
                raise InputError(f"spans.{name}", getattr(self, name), "it must be at least 1", "Raise it")
