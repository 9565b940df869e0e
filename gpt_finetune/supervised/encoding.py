"""Examples as tokens with what is learned of them; the tokens before an answer are those that generation would see."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from tokenizers import Tokenizer

from gpt_finetune.errors import InputError
from gpt_finetune.supervised.formats import Conversation, Example, Passage
from gpt_finetune.supervised.rendering import MARK, Renderer, special_tokens
from gpt_finetune.supervised.templates import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """An example as the model gets it (T tokens).

    Args:
        ids: int32 (T,).
        learned: Whether each is a target: bool (T,). The first never is, since nothing stands before it.
        retokenized: Whether tokenising the whole at once gives other tokens, which span the border of an answer.
    """

    ids: np.ndarray
    learned: np.ndarray
    retokenized: bool = False


class PieceEncoder:
    """Encodes pieces of text so that they join to what the whole would be; marks are taken out on the way.

    Args:
        tokenizer: A fast tokenizer; truncation and padding that it may be set to are not used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        state = tokenizer.backend_tokenizer.to_str()
        self.backend, self.ordinary = Tokenizer.from_str(state), Tokenizer.from_str(state)
        self.ordinary.encode_special_tokens = True
        for backend in (self.backend, self.ordinary):
            backend.no_truncation()
            backend.no_padding()
        self.special = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in special_tokens(tokenizer)}
        self.splits = re.compile("|".join(self._patterns(tokenizer)) or "(?!)")
        # Some vocabularies put a space before every text they are given, some also behind each special token; elsewhere
        # amid a text there must be none.
        self.newline = self._ids(self.backend, "\n")
        self.shifts = self._ids(self.backend, "\na")[len(self.newline) :] != self._ids(self.backend, "a")
        self.restarts = self._ids(self.backend, tokenizer.eos_token + "a")[1:] == self._ids(self.backend, "a")

    def template(self, text: str, before: int | None) -> list[int]:
        """Encode a piece of a rendered conversation, with the special tokens that the template wrote.

        Args:
            text: The piece, with marks in what must not become a special token.
            before: The token before it; None where the row begins.
        """
        if MARK not in text:
            return self._piece(self.backend, text, before)
        ids: list[int] = []
        begin = 0
        for found in [*self.splits.finditer(text), None]:
            ids += self.text(text[begin : found.start() if found else None], ids[-1] if ids else before)
            if found:
                ids.append(self.special[found[0].strip()])
                begin = found.end()
        return ids

    def text(self, text: str, before: int | None) -> list[int]:
        """Encode ordinary text, whatever it spells."""
        return self._piece(self.ordinary, text.replace(MARK, ""), before) if text else []

    def _piece(self, backend: Tokenizer, text: str, before: int | None) -> list[int]:
        if not self.shifts or before is None or (self.restarts and before in self.special.values()):
            return self._ids(backend, text)
        ids = self._ids(backend, "\n" + text)
        return ids[len(self.newline) :] if ids[: len(self.newline)] == self.newline else self._ids(backend, text)

    @staticmethod
    def _ids(backend: Tokenizer, text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    @staticmethod
    def _patterns(tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return one pattern a special token, with the spaces beside it that it swallows."""
        tokens = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        space = r"\s*"
        return [space * t.lstrip + re.escape(t.content) + space * t.rstrip for t in tokens if t.special]


class ExampleEncoder:
    """Turns examples into tokens.

    Args:
        tokenizer: From `ready_tokenizer`.
        learn: Which tokens bear loss: assistant, completion or all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learn: str = "assistant") -> None:
        self.tokenizer, self.learn = tokenizer, learn
        self.pieces = PieceEncoder(tokenizer)
        ends = end_of_turn(tokenizer)
        self.renderer = Renderer(tokenizer, tokenizer.convert_ids_to_tokens(ends))
        # What stands for the unknown comes out of content by right.
        self.boundaries = {i for i in self.pieces.special.values() if i != tokenizer.unk_token_id or i in ends}
        with_special, content = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        cut = next(i for i in range(len(with_special)) if with_special[i : i + len(content)] == content)
        self.opening: list[int] = with_special[:cut]  # what the tokenizer itself puts before a text: bos, or nothing

    def __call__(self, example: Example) -> Tokens:
        """Encode an example.

        Raises:
            InputError: Its text is no text, or becomes a special token whatever the tokenizer is told.
        """
        try:
            json.dumps(example.content, ensure_ascii=False).encode()
            return self._conversation(example) if isinstance(example, Conversation) else self._passage(example)
        except InputError:
            raise
        except UnicodeEncodeError as error:
            remedy = r"Repair or remove the row; \ud800 to \udfff only come in pairs"
            value = error.object[error.start : error.start + 20]
            raise InputError(
                example.origin, value, "it holds half a surrogate pair, which is no text", remedy
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            remedy = "Repair or remove the row, or choose another chat_template"
            raise InputError(example.origin, "…", f"the chat template cannot write it ({error})", remedy) from None

    def prompt(self, example: Example) -> str | None:
        """Return what the model is given for the last answer, special tokens spelt out; None for text.

        None, too, where content spells a special token, which the prompt as text could not tell apart.
        """
        if isinstance(example, Conversation):
            text = self.renderer.prompt(example)
            return None if MARK in text else text
        if example.prompt is None:
            return None
        wanted = self.opening + self.pieces.text(example.prompt, None)
        opening = "".join(self.tokenizer.convert_ids_to_tokens(self.opening))
        # Some vocabularies put a space before a text, but not behind the token that opens it.
        texts = [opening + space + example.prompt for space in ("", " ")]
        return next((text for text in texts if self.pieces.template(text, None) == wanted), None)

    def _conversation(self, example: Conversation) -> Tokens:
        rendered = self.renderer.answers(example, last_only=self.learn == "completion")
        text, pieces, begin = rendered.text, [], 0
        for start, end in rendered.answers:
            pieces += [(text[begin:start], False), (text[start:end], True)]
            begin = end
        ids: list[int] = []
        learned: list[bool] = []
        for piece, is_learned in [*pieces, (text[begin:], False)]:
            if piece:
                new = self.pieces.template(piece, ids[-1] if ids else None)
                ids += new
                learned += [is_learned] * len(new)
        whole = self.pieces.template(text, None)
        if rendered.open_end:
            where = len(learned) - learned[::-1].index(True)
            ids.insert(where, self.tokenizer.eos_token_id)
            learned.insert(where, True)
            whole.insert(where, self.tokenizer.eos_token_id)
        written = sum(1 for _ in self.pieces.splits.finditer(text)) + rendered.open_end
        return self._tokens(example.origin, ids, learned, ids != whole, written)

    def _passage(self, example: Passage) -> Tokens:
        prompt = self.pieces.text(example.prompt or "", None)
        completion = self.pieces.text(example.completion, prompt[-1] if prompt else None)
        end = [self.tokenizer.eos_token_id]
        text = (example.prompt or "") + example.completion
        differs = bool(prompt) and prompt + completion != self.pieces.text(text, None)
        given = self.opening + prompt
        learned = [False] * len(given) + [True] * (len(completion) + 1)
        written = sum(token in self.pieces.special.values() for token in self.opening) + 1
        return self._tokens(example.origin, given + completion + end, learned, differs, written)

    def _tokens(self, origin: str, ids: list[int], learned: list[bool], differs: bool, written: int) -> Tokens:
        """Make arrays, and make sure that there are no more special tokens than were written."""
        boundaries = [token for token in ids if token in self.boundaries]
        if len(boundaries) > written:
            problem = "its text becomes a special token whatever the tokenizer is told, and would forge a boundary"
            remedy = "Remove it from the text, or mark the token as special in tokenizer.json"
            raise InputError(origin, self.tokenizer.decode(boundaries), problem, remedy)
        array, mask = np.array(ids, np.int32), np.array(learned, bool)
        if self.learn == "all":
            mask[:] = True
        mask[0] = False
        return Tokens(array, mask, differs)
