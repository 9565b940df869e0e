"""Rows as examples: a table from format to reader. What cannot be read is named by file and row."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.columns import fill
from gpt_finetune.supervised.config import TurnTemplate
from gpt_finetune.supervised.messages import Message, read_messages, read_tools

# Other columns are ignored: ids, topics, scores. These belong to a conversation, whatever its format.
TOOLS, SYSTEM = "tools", "system"


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template writes as text.

    Args:
        origin: File and row.
        messages: Role, content and what else templates know, in the fields that OpenAI gave them.
        tools: JSON schemas of the functions that the assistant may call; None without any.
        learned: Numbers of the assistant's turns that may bear loss.
        columns: Of the row, those that a template put into the user's turn; they tell no two examples apart.
    """

    origin: str
    messages: list[Message]
    tools: list[Any] | None
    learned: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def opening(self) -> str:
        """The first user's turn: what decides on which side of the split the example falls."""
        return next(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def content(self) -> Any:
        """All that tells two examples apart."""
        return [self.messages, self.tools, self.learned]

    @property
    def last(self) -> tuple[str, str]:
        """What the user says before the last answer that is learned, and that answer."""
        place = self.learned[-1]
        asked = next(turn["content"] for turn in reversed(self.messages[:place]) if turn["role"] == "user")
        return asked, self.messages[place]["content"]


@dataclass(frozen=True)
class Passage:
    """Text without turns.

    Args:
        origin: File and row.
        prompt: What is given; None if the text is learned whole.
        completion: What is learned.
    """

    origin: str
    prompt: str | None
    completion: str

    @property
    def opening(self) -> str:
        """The prompt, or a text itself: what decides on which side of the split the example falls."""
        return self.completion if self.prompt is None else self.prompt

    @property
    def content(self) -> Any:
        """All that tells two examples apart."""
        return [self.prompt, self.completion]

    @property
    def last(self) -> tuple[str, str]:
        """The prompt, empty where there is none, and what is learned."""
        return self.prompt or "", self.completion

    @property
    def columns(self) -> Mapping[str, Any]:
        """Nothing: only templates name columns."""
        return {}


Example = Conversation | Passage


@dataclass(frozen=True)
class Format:
    """A layout of rows.

    Args:
        columns: Columns that a row must have.
        read: Makes an example of a row and its origin.
    """

    columns: tuple[str, ...]
    read: Callable[[dict[str, Any], str], Example]


@dataclass
class ExampleReader:
    """Reads the records of one source; each file keeps the format of its first row.

    Args:
        format: A key of `FORMATS`, or auto.
        template: Turns made of any columns, instead of a format.
        key: Dotted config key of the template, for error messages.
    """

    format: str = "auto"
    template: TurnTemplate | None = None
    key: str = "template"
    _found: dict[str, str] = field(default_factory=dict)

    def __call__(self, records: Iterable[Record]) -> Iterator[Example]:
        """Yield one example a record.

        Raises:
            InputError: A row has no known columns, others than its file's first row, or bad values.
        """
        for record in records:
            row = {"text": record.value} if isinstance(record.value, str) else record.value
            if not isinstance(row, dict):
                raise InputError(record.origin, row, "the row is no object of columns", "Give one JSON object a row")
            if self.template is not None:
                yield _templated(self.template, row, record.origin, self.key)
                continue
            row = {name: value for name, value in row.items() if value is not None}
            name = self._found.get(record.file) or self._recognise(row, record.origin)
            self._found[record.file] = name
            self._require(name, row, record)
            yield FORMATS[name].read(row, record.origin)

    def _recognise(self, row: dict[str, Any], origin: str) -> str:
        if self.format != "auto":
            return self.format
        for name, known in FORMATS.items():
            if all(column in row for column in known.columns):
                return name
        wanted = "; ".join(f"{name}: {', '.join(known.columns)}" for name, known in FORMATS.items())
        problem = "these columns belong to no known format"
        raise InputError(origin, list(row), problem, f"Rename them. Known: {wanted}")

    def _require(self, name: str, row: dict[str, Any], record: Record) -> None:
        missing = [column for column in FORMATS[name].columns if column not in row]
        if missing:
            whose = "the first row of the file has" if self.format == "auto" else "the source is said to have"
            problem = f"{whose} the format {name}, and this row has no {' and no '.join(map(repr, missing))}"
            remedy = "Repair the row, or put rows of another format into a file of their own"
            raise InputError(record.origin, list(row), problem, remedy)


def digest(example: Example) -> bytes:
    """Hash an example, whatever its spaces: 16 bytes."""
    return xxhash.xxh3_128_digest(json.dumps(_normalised(example.content), sort_keys=True).encode())


def opening_order(example: Example, seed: int) -> int:
    """Hash the opening of an example, whatever its spaces and case, into its place in the split's order."""
    return xxhash.xxh3_64_intdigest(str(_normalised(example.opening)).casefold().encode(errors="replace"), seed=seed)


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    if isinstance(value, dict):
        return {key: _normalised(item) for key, item in value.items()}
    return [_normalised(item) for item in value] if isinstance(value, list | tuple) else value


def _conversation(
    row: dict[str, Any], origin: str, parts: Sequence[tuple[str, list[Any]]], learned_from: int = 0
) -> Conversation:
    """Check the turns of all parts together; only those from `learned_from` on may bear loss."""
    system = [{"role": "system", "content": row[SYSTEM]}] if row.get(SYSTEM) else []
    turns = [("system", turn) for turn in system]
    turns += [(f"{name}[{i}]", turn) for name, part in parts for i, turn in enumerate(part)]
    messages, learned = read_messages(turns, origin)
    # An empty system turn leaves no message: count from the end.
    first = len(messages) - (len(turns) - len(system) - learned_from)
    learned = tuple(i for i in learned if i >= first)
    if not learned:
        problem = "there is no turn of the assistant to learn"
        raise InputError(origin, [message["role"] for message in messages], problem, "Add one, or remove the row")
    return Conversation(origin, messages, read_tools(row.get(TOOLS), origin), learned)


def _templated(template: TurnTemplate, row: dict[str, Any], origin: str, key: str) -> Example:
    turns = {"user": template.user, "assistant": template.assistant}
    turns = {"system": template.system, **turns} if template.system else turns
    said = [{"role": role, "content": fill(text, row, origin, f"{key}.{role}")} for role, text in turns.items()]
    made = _conversation({}, origin, [("template", said)])
    return replace(made, columns={name: row[name] for name in template.asks})


def _messages(row: dict[str, Any], origin: str) -> Example:
    return _conversation({TOOLS: row.get(TOOLS)}, origin, [("messages", _turns(row, "messages", origin))])


def _sharegpt(row: dict[str, Any], origin: str) -> Example:
    return _conversation(row, origin, [("conversations", _turns(row, "conversations", origin))])


def _alpaca(row: dict[str, Any], origin: str) -> Example:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise InputError(f"{origin}: history", history, "it is no list of pairs", "Give [[question, answer], …]")
    texts = [_text(row, name, origin) for name in ("instruction", "input") if row.get(name)]
    asked = "\n\n".join(text for text in texts if text.strip())
    turns = [{"role": role, "content": text} for pair in history for role, text in zip(_PAIR, pair, strict=True)]
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    return _conversation(row, origin, [("turns", turns)])


def _prompt_completion(row: dict[str, Any], origin: str) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _conversation(row, origin, [("prompt", prompt), ("completion", completion)], len(prompt))
    prompt, completion = _text(row, "prompt", origin), _text(row, "completion", origin)
    if not completion.strip():
        raise InputError(f"{origin}: completion", completion, "it is empty", "Write it, or remove the row")
    return Passage(origin, prompt, completion)


def _plain_text(row: dict[str, Any], origin: str) -> Example:
    text = _text(row, "text", origin)
    if not text.strip():
        raise InputError(origin, text, "the text is empty", "Remove the row")
    return Passage(origin, None, text)


def _turns(row: dict[str, Any], column: str, origin: str) -> list[Any]:
    value = row[column]
    if isinstance(value, str):  # a table of texts, such as csv, holds lists as JSON
        try:
            value = json.loads(value)
        except ValueError:
            value = row[column]
    if not isinstance(value, list) or not value:
        problem = "it holds no turns" if value == [] else f"it holds {type(value).__name__}, not a list of turns"
        raise InputError(f"{origin}: {column}", value, problem, "Repair or remove the row")
    return value


def _text(row: dict[str, Any], column: str, origin: str) -> str:
    if not isinstance(row[column], str):
        problem = f"it holds {type(row[column]).__name__}, not text"
        raise InputError(f"{origin}: {column}", row[column], problem, "Repair or remove the row")
    return row[column]


_PAIR = ("user", "assistant")

# In the order in which they are looked for: rows often keep a `text` or a `prompt` beside what they were made into.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), _messages),
    "sharegpt": Format(("conversations",), _sharegpt),
    "prompt_completion": Format(("prompt", "completion"), _prompt_completion),
    "alpaca": Format(("instruction", "output"), _alpaca),
    "text": Format(("text",), _plain_text),
}
