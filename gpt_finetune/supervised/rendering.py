"""Conversations as text, with the places where the assistant speaks; no content can pass for a special token there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import render_jinja_template

from gpt_finetune.errors import InputError
from gpt_finetune.supervised.formats import Conversation
from gpt_finetune.supervised.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands inside each special token that content spells, until the text is encoded. Unicode keeps this code point for a
# program's own use: no text holds it.
MARK = "\ufdd0"
_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Args:
        text: All of it, with marks.
        answers: Beginning and end of each turn to learn, in characters, with the token that ends it.
        open_end: Whether no token ends the last of them, so that the end token must be added.
    """

    text: str
    answers: list[tuple[int, int]]
    open_end: bool


class Renderer:
    """Writes conversations through a tokenizer's chat template.

    Args:
        tokenizer: With a chat template.
        ends: Tokens that may end a turn; whatever white space the template puts behind one is not learned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> None:
        self.tokenizer, self.ends = tokenizer, tuple(ends)
        self.guard = Guard(special_tokens(tokenizer))

    def render(self, messages: list[Message], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """Return a conversation as text; `prompt` adds what opens the assistant's next turn."""
        return self._render(self.guard(messages), self.guard(tools), prompt)

    def answers(self, example: Conversation, last_only: bool = False) -> Rendered:
        """Write an example and find the turns to learn.

        Args:
            example: The conversation.
            last_only: Learn the last of its turns only.

        Raises:
            InputError: The template writes a turn otherwise when further turns follow, so that what stands before an
                answer is not what would stand there when the model is asked for it.
        """
        messages, tools = self.guard(example.messages), self.guard(example.tools)
        turns = example.learned[-1:] if last_only else example.learned
        if _BLOCK.search(template_of(self.tokenizer, tools)):
            text, blocks = self._blocks(messages, tools)
            found = self._chosen(blocks, messages, turns, example.origin)
        else:
            text = self._render(messages, tools)
            found = [self._between(text, messages, tools, turn, example.origin) for turn in turns]
        answers, open_end = [], False
        for begin, end in found:
            end, open_end = self._ended(text, begin, end)
            answers.append((begin, end))
        return Rendered(text, answers, open_end)

    def prompt(self, example: Conversation) -> str:
        """Write what stands before the last answer, as it is written when the model is asked for it."""
        messages = self.guard(example.messages[: example.learned[-1]])
        return self._render(messages, self.guard(example.tools), prompt=True)

    def _render(self, messages: Any, tools: Any, prompt: bool = False) -> str:
        return self._call(messages, tools, add_generation_prompt=prompt)[0][0]

    def _blocks(self, messages: Any, tools: Any) -> tuple[str, list[tuple[int, int]]]:
        texts, blocks = self._call(messages, tools, return_assistant_tokens_mask=True)
        return texts[0], blocks[0]

    def _call(self, messages: Any, tools: Any, **options: Any) -> Any:
        template = template_of(self.tokenizer, tools)
        options |= self.tokenizer.special_tokens_map
        return render_jinja_template([messages], tools=tools, chat_template=template, **options)

    def _between(self, text: str, messages: Any, tools: Any, turn: int, origin: str) -> tuple[int, int]:
        """Find a turn as what its conversation has more than the prompt for it."""
        prompt = self._render(messages[:turn], tools, prompt=True)
        whole = self._render(messages[: turn + 1], tools)
        if not (whole.startswith(prompt) and text.startswith(whole)):
            problem = f"the chat template writes messages[{turn}] or what stands before it otherwise in the whole"
            remedy = (
                "Choose chat_template=chatml or plain, learn=completion, or a template with {% generation %} blocks"
            )
            raise InputError(origin, messages[turn]["content"], problem, remedy)
        return len(prompt), len(whole)

    def _chosen(
        self, blocks: list[tuple[int, int]], messages: Any, turns: Sequence[int], origin: str
    ) -> list[tuple[int, int]]:
        """Choose the template's generation blocks that belong to the turns to learn."""
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(blocks) == len(spoken):
            return [blocks[spoken.index(turn)] for turn in turns]
        if blocks and len(turns) == len(spoken):
            return blocks
        problem = f"the chat template has {len(blocks)} generation blocks for {len(spoken)} turns of the assistant"
        raise InputError(origin, len(blocks), problem, "Put {% generation %} around each such turn, once")

    def _ended(self, text: str, begin: int, end: int) -> tuple[int, bool]:
        """Return where an answer ends, with the token that ends it, and whether there is none."""
        answer = text[begin:end].rstrip()
        if answer.endswith(self.ends):
            return begin + len(answer), False
        behind = next((token for token in self.ends if text.startswith(token, end)), None)
        return (begin + len(answer), True) if behind is None else (end + len(behind), False)


class Guard:
    """Puts a mark into each special token that is spelt in content.

    Args:
        tokens: The special tokens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches

    def __call__(self, value: Any) -> Any:
        """Return a copy of nested plain values with every string guarded."""
        if isinstance(value, str):
            return self.pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], value.replace(MARK, ""))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return [self(item) for item in value] if isinstance(value, list) else value


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Name the tokens that text must not become."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> str:
    """Return the template that a conversation with or without tools is written by."""
    return tokenizer.get_chat_template(tools=tools)
