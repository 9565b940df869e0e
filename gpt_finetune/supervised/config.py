"""What the user can say about supervised examples: plain dataclasses that import in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.columns import slots

PACKAGE = "package:"


@dataclass
class TurnTemplate:
    """How the columns of a row become turns.

    `{column}` is what the row has there, a list with commas between its items; `{column:.800}` its first 800
    characters; `{json:one,other}` an object of columns in one line of JSON, without those that are null or empty; `{{`
    and `}}` are braces.

    Args:
        user: What is asked, e.g. `Summarise in one line: {text}`.
        assistant: What is to be answered, e.g. `{title}`.
        system: What stands before; empty: nothing.
    """

    user: str = ""
    assistant: str = ""
    system: str = ""

    def validate(self, prefix: str) -> None:
        """Check that both sides ask something of the row.

        Args:
            prefix: Dotted key under which the user wrote this template; it opens the error message.

        Raises:
            InputError: A side names no column, or what is in its braces cannot be read.
        """
        for name in ("user", "assistant", "system"):
            text = getattr(self, name)
            if not slots(text, f"{prefix}.{name}") and name != "system":
                problem = "it names no column, so that all rows would say the same"
                raise InputError(f"{prefix}.{name}", text, problem, "Write e.g. {text}")

    @property
    def asks(self) -> list[str]:
        """The columns that the user's turn names."""
        return list(dict.fromkeys(name for slot in slots(self.user, "user") for name in slot.names))


@dataclass
class ExampleSourceConfig:
    """One place that examples come from.

    Args:
        path: A file (jsonl, json, csv, tsv, parquet or plain text; `.gz` may follow each but parquet), a folder, a
            glob, `hub:owner/name` for a Hub data set, or `package:name/file` for a file of a packaged data set, e.g.
            `package:chatterbot-corpus/english.jsonl`.
        weight: How many times per epoch each example is seen: 2.5 is two whole copies and a fixed random half.
        format: What the columns mean; auto tells by their names, file by file. messages: `messages` of role and
            content, and `tools`; sharegpt: `conversations` of from and value; alpaca: `instruction`, `input`,
            `output`; prompt_completion: `prompt` and `completion`, both texts or both lists of messages; text: `text`.
        template: Turns made of any columns, instead of a format: `{user: "Translate: {en}", assistant: "{fr}"}`.
        encoding: Character encoding of the files, by its Python name, e.g. `gb18030`.
        name: Configuration of the Hub data set.
        split: Split of the Hub data set.
        revision: Commit, tag or branch of the Hub data set.
    """

    path: str = ""
    weight: float = 1.0
    limit: int | None = None
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"] = "auto"
    template: TurnTemplate | None = None
    encoding: str = "utf-8"
    name: str | None = None
    split: str = "train"
    revision: str | None = None

    def as_source(self, path: str | None = None) -> SourceConfig:
        """Return what the readers of documents take, which know nothing of formats.

        Args:
            path: Where the source really lies, if `path` is a name.
        """
        return SourceConfig(
            path or self.path,
            self.weight,
            encoding=self.encoding,
            name=self.name,
            split=self.split,
            revision=self.revision,
        )

    def validate(self, prefix: str = "source") -> None:
        """Check every field.

        Args:
            prefix: Dotted key under which the user wrote this source; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        self.as_source().validate(prefix)
        check_path(self.path, prefix)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"{prefix}.limit", self.limit, "it must be at least 1", "Raise it, or leave it out")
        if self.template is not None:
            self.template.validate(f"{prefix}.template")
            if self.format != "auto":
                problem = "a template says already what the columns mean"
                raise InputError(f"{prefix}.format", self.format, problem, "Leave one of them out")


def check_path(path: str, prefix: str) -> None:
    """Refuse places that hold no rows.

    Args:
        path: What the user gave.
        prefix: Dotted key of the source; it opens the error message.

    Raises:
        InputError: It is a corpus of documents, or a package without a file.
    """
    problem = ""
    if path.startswith("embedded:"):
        problem = "an embedded corpus holds documents, not rows"
    elif path.startswith(PACKAGE) and "/" not in path:
        problem = "it names no file of the package"
    if problem:
        remedy = "Give a file, a folder, hub:owner/name or e.g. package:chatterbot-corpus/english.jsonl"
        raise InputError(f"{prefix}.path", path, problem, remedy)


@dataclass
class ExamplesConfig:
    """Which examples to learn from, and how they become rows of tokens.

    Args:
        sources: Where the training examples come from.
        validation: Where the held-out examples come from. Empty: they are split off the training examples.
        validation_fraction: Share of the examples to hold out when `validation` is empty; all that open with the same
            user's turn go to the same side. 0 trains on everything.
        deduplicate: Drop examples that have been seen before, spaces apart.
        learn: Which tokens bear loss. assistant: every turn of the assistant, or the completion, with the token that
            ends it; completion: the last of these turns only; all: every token. Text is learned whole in any case.
        chat_template: How a conversation is written as text. auto: the tokenizer's own template, else chatml where
            the vocabulary has its tokens, else plain; tokenizer; chatml; plain; or the path of a Jinja file.
        max_length: Tokens of an example, and of a packed row.
        too_long: What becomes of a longer example. truncate: its end is cut off; split: text goes on in further
            examples, anything else is truncated; drop: it is left out. All are counted.
        strict: Refuse examples that are too long.
        packing: Put several examples into a row. They do not see each other, and none is cut for it.
        seed: Seed of the split and of fractional weights.
    """

    sources: list[ExampleSourceConfig] = field(default_factory=list)
    validation: list[ExampleSourceConfig] = field(default_factory=list)
    validation_fraction: float = 0.05
    deduplicate: bool = True
    learn: Literal["assistant", "completion", "all"] = "assistant"
    chat_template: str = "auto"
    max_length: int = 512
    too_long: Literal["truncate", "split", "drop"] = "truncate"
    strict: bool = False
    packing: bool = True
    seed: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExamplesConfig:
        """Return the section that a run's `config.yaml` holds.

        Args:
            values: Its `data`.

        Raises:
            TypeError: A field is not known.
        """

        def source(fields: dict[str, Any]) -> ExampleSourceConfig:
            template = fields.get("template")
            return ExampleSourceConfig(**fields | {"template": template and TurnTemplate(**template)})

        places = {key: [source(fields) for fields in values.get(key, [])] for key in ("sources", "validation")}
        return cls(**values | places)

    @property
    def holds_out(self) -> bool:
        """Whether there will be something to evaluate on."""
        return bool(self.validation) or self.validation_fraction > 0

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if not self.sources:
            remedy = f"Name one source, e.g. {prefix}.sources=[{{path: chats.jsonl}}]"
            raise InputError(f"{prefix}.sources", self.sources, "there is nothing to train on", remedy)
        for key, sources in (("sources", self.sources), ("validation", self.validation)):
            for i, source in enumerate(sources):
                source.validate(f"{prefix}.{key}[{i}]")
        if not 0 <= self.validation_fraction < 1:
            problem = "a share lies between 0 (hold out nothing) and 1 (leave nothing to train on)"
            raise InputError(f"{prefix}.validation_fraction", self.validation_fraction, problem, "Give e.g. 0.05")
        if self.max_length < 2:
            problem = "an example of fewer than 2 tokens leaves nothing to predict"
            raise InputError(f"{prefix}.max_length", self.max_length, problem, "Give 2 or more; 512 is a good start")
        if self.seed < 0:
            raise InputError(f"{prefix}.seed", self.seed, "it is below 0", "Give 0 or more")
        if not self.chat_template:
            raise InputError(f"{prefix}.chat_template", "", "it is empty", "Give auto, or leave it out")
