"""What the user can say about questions with choices: a plain dataclass that imports in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig


@dataclass
class ChooseDataConfig(TaskDataConfig):
    """Which questions with choices to learn from, and how they become rows of tokens, one a choice.

    Args:
        question_column: Column of the question, or of the text that a choice is to fit. It loses its end where it is
            too long.
        choices_column: Column of the choices, a list of texts. null: the wrong ones are right answers of other rows on
            the same side of the split.
        answer_column: Column of the right choice: its index from 0, or its text; without choices, its text.
        distractors: How many wrong choices are drawn where there is no column of them.
    """

    question_column: str = "question"
    choices_column: str | None = "choices"
    answer_column: str = "answer"
    distractors: int = 3

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        super().validate(prefix)
        if self.question_column in (self.choices_column, self.answer_column):
            problem = "question and answers cannot be one column"
            raise InputError(f"{prefix}.question_column", self.question_column, problem, "Name another")
        if self.distractors < 1:
            problem = "without a wrong choice there is nothing to choose"
            raise InputError(f"{prefix}.distractors", self.distractors, problem, "Give 1 or more")
        if self.max_length < 8:
            problem = "question and choice have no room"
            raise InputError(f"{prefix}.max_length", self.max_length, problem, "Give 8 or more")
