"""What the user can say about rows of words with tags: a plain dataclass that imports in milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig


@dataclass
class TagDataConfig(TaskDataConfig):
    """Which words with tags to learn from, and how they become rows of tokens.

    Args:
        words_column: Column of the words, a list of texts.
        tags_column: Column of their tags, a list as long.
        slots_column: Column of slots with their values, as in `{"area": "kitchen"}`, that stand in a text; they make
            the tags then, and words and tags are not read. A value that the text has not is dropped, and counted.
        text_column: Column of the text that has the slots.
        scheme: What tags are. iob2: names in a text, `B-X` for the first word of one, `I-X` for the others, `O` for the
            rest; a name that begins with `I-X` is taken for one. classes: a class for each word. auto: iob2 if all tags
            look like it.
        tag_cut: Regular expression; what it finds in a tag is cut out, which merges classes. null cuts nothing.
        characters: Take words of scripts without spaces apart. The model then reads and tags characters, as it must
            where texts come as they are written; false trusts that words are marked in all texts to come.
        joiner: What stands between words. null: nothing where most letters are of scripts without spaces, else a space.
        label_subword: Which of a word's tokens bears its tag. In a model that reads to the right, the last one alone
            has seen the whole word.
        overlap: Tokens that neighbouring windows share, about, where a text is longer than max_length. Each word is
            learned, and told, in the window that shows most of what stands around it.
        packing: Put several texts into a training row. They do not see each other. Without it, each has a row, and
            batches are of similar length.
    """

    words_column: str = "words"
    tags_column: str = "tags"
    slots_column: str | None = None
    text_column: str = "text"
    scheme: Literal["auto", "iob2", "classes"] = "auto"
    tag_cut: str | None = None
    characters: bool = False
    joiner: str | None = None
    label_subword: Literal["last", "first"] = "last"
    overlap: int = 32
    packing: bool = True

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        super().validate(prefix)
        for one, other in (("words_column", "tags_column"), ("text_column", "slots_column")):
            if getattr(self, one) == getattr(self, other):
                problem = f"{prefix}.{one} names the same column"
                raise InputError(f"{prefix}.{other}", getattr(self, other), problem, "Name another")
        if not 0 <= self.overlap < self.max_length:
            remedy = f"Give 0 to {self.max_length - 1}, e.g. {self.max_length // 8}"
            raise InputError(f"{prefix}.overlap", self.overlap, f"windows have {self.max_length} tokens", remedy)
        if self.tag_cut is not None:
            try:
                re.compile(self.tag_cut)
            except re.error as error:
                problem = f"it is no regular expression: {error}"
                raise InputError(f"{prefix}.tag_cut", self.tag_cut, problem, "Mend it, or give null") from None
