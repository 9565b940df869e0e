"""What the user can say about data: plain dataclasses that import in milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gpt_finetune.errors import InputError


@dataclass
class SourceConfig:
    """One place that documents come from.

    Args:
        path: `embedded:python` (the running Python's own library, about 12 MB of code and English), a file, a
            folder, a glob such as `books/**/*.txt`, `hub:owner/name` for a Hub data set, or `package:name/file` for a
            file of a packaged data set. Suffixes: jsonl, json, csv, tsv and parquet hold many documents a file; any
            other is read as plain text. `.gz` may follow each but parquet.
        weight: How many times per epoch each token of this source is seen: 2.5 is two whole copies and a fixed
            random half of the blocks. When streaming: the relative chance that the next document comes from here.
        text_column: Column that holds the text, in jsonl, json, csv, tsv, parquet and Hub data sets.
        separator: Text that parts the documents inside one plain-text file, e.g. `<|endoftext|>`. Unset: one file
            is one document.
        encoding: Character encoding of the files, by its Python name, e.g. `gb18030`.
        name: Configuration of the Hub data set, e.g. `wikitext-2-raw-v1`.
        split: Split of the Hub data set.
        revision: Commit, tag or branch of the Hub data set.
    """

    path: str = "embedded:python"
    weight: float = 1.0
    text_column: str = "text"
    separator: str | None = None
    encoding: str = "utf-8"
    name: str | None = None
    split: str = "train"
    revision: str | None = None

    def validate(self, prefix: str = "source") -> None:
        """Check every field.

        Args:
            prefix: Dotted key under which the user wrote this source; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if not self.path:
            raise InputError(
                f"{prefix}.path", self.path, "it is empty", "Give a file, a folder, a glob or hub:owner/name"
            )
        if not 0 < self.weight <= 1000:
            raise InputError(
                f"{prefix}.weight",
                self.weight,
                "a weight lies above 0 and is at most 1000",
                "Give a number in between, or remove the source to leave it out",
            )
        if self.separator == "":
            raise InputError(
                f"{prefix}.separator",
                self.separator,
                "an empty text parts nothing",
                "Leave it out to read one document per file",
            )
        try:
            "a".encode(self.encoding)  # a mere look-up would let base64 pass
        except LookupError:
            raise InputError(
                f"{prefix}.encoding",
                self.encoding,
                "Python knows no such text encoding",
                "Try utf-8, gb18030 or latin-1",
            ) from None


@dataclass
class TokenizerConfig:
    """The tokenizer: an existing one, or one trained on the training documents.

    Args:
        path: Folder or Hub id of an existing tokenizer; the other fields are then unused. Unset: train one.
        vocab_size: Number of tokens to learn, special tokens and the 256 bytes included.
        min_frequency: How often a pair must occur to be merged, in occurrences.
        eos_token: Token that ends every document; it also opens generation (bos).
        pad_token: Token that fills unused places; never the same as `eos_token`.
        extra_special_tokens: Further tokens with ids of their own, e.g. `["<|user|>", "<|assistant|>"]`.
    """

    path: str | None = None
    vocab_size: int = 4096
    min_frequency: int = 2
    eos_token: str = "<|endoftext|>"
    pad_token: str = "<|pad|>"
    extra_special_tokens: list[str] = field(default_factory=list)

    @property
    def special_tokens(self) -> list[str]:
        """All special tokens, in the order of their ids."""
        return [self.eos_token, self.pad_token, *self.extra_special_tokens]

    def validate(self, prefix: str = "tokenizer") -> None:
        """Check every field.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if self.path is not None:
            return
        if self.eos_token == self.pad_token:
            raise InputError(
                f"{prefix}.pad_token",
                self.pad_token,
                "it equals eos_token, and a model whose end token is padding never learns to stop",
                "Give it a name of its own, e.g. <|pad|>",
            )
        special = self.special_tokens
        keys = ["eos_token", "pad_token"] + ["extra_special_tokens"] * len(self.extra_special_tokens)
        for key, token in zip(keys, special, strict=True):
            if len(token) < 2 or special.count(token) > 1:
                raise InputError(
                    f"{prefix}.{key}",
                    token,
                    "a special token has at least two characters and is listed once",
                    "Choose a name that ordinary text does not hold, e.g. <|user|>",
                )
        if self.vocab_size < 256 + len(special):
            raise InputError(
                f"{prefix}.vocab_size",
                self.vocab_size,
                f"256 bytes and {len(special)} special tokens already make {256 + len(special)}",
                f"Give at least {256 + len(special)}",
            )
        if self.min_frequency < 1:
            raise InputError(f"{prefix}.min_frequency", self.min_frequency, "it is below 1", "Give 1 or more")


@dataclass
class DataConfig:
    """Which documents to train on, and how they become rows of tokens.

    Args:
        sources: Where the training documents come from.
        validation: Where the held-out documents come from. Empty: they are split off the training documents.
        validation_fraction: Share of the training bytes to hold out, in whole documents, when `validation` is
            empty; 0 trains on everything.
        watch: Other domains to evaluate on as well, by name, e.g. what the model knew before: how much is forgotten.
            Their documents are never trained on.
        watch_fraction: Share of the bytes of each watched domain to evaluate on, in whole documents. Chosen as
            `validation_fraction` chooses: the same share and seed give what a run on these sources held out.
        deduplicate: Drop documents whose text has been seen before, across all sources; a training document that is
            also held out is dropped from training.
        block_size: Tokens per training row.
        streaming: Read, tokenize and pack on the fly, for corpora that do not fit on disk; training then needs a
            number of steps.
        validation_documents: How many documents of the stream's start to hold out, when streaming; 0 holds out none.
        shuffle_buffer: Rows among which the next one is drawn, when streaming; 1 keeps the order.
        seed: Seed of the split, of fractional weights and of the stream's shuffling.
        cache_dir: Folder for packed corpora and trained tokenizers. Unset: `$GPT_FINETUNE_CACHE`, else
            `~/.cache/gpt_finetune`.
    """

    sources: list[SourceConfig] = field(default_factory=lambda: [SourceConfig()])
    validation: list[SourceConfig] = field(default_factory=list)
    validation_fraction: float = 0.05
    watch: dict[str, list[SourceConfig]] = field(default_factory=dict)
    watch_fraction: float = 1.0
    deduplicate: bool = True
    block_size: int = 256
    streaming: bool = False
    validation_documents: int = 200
    shuffle_buffer: int = 1000
    seed: int = 0
    cache_dir: str | None = None

    @property
    def holds_out(self) -> bool:
        """Whether there will be something to evaluate on."""
        split_off = self.validation_documents > 0 if self.streaming else self.validation_fraction > 0
        return bool(self.validation) or split_off

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if not self.sources:
            raise InputError(f"{prefix}.sources", self.sources, "there is nothing to train on", "Name one source")
        for name, sources in self.watch.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not sources:
                problem = "a watched domain has a name of letters, digits, - and _, and at least one source"
                raise InputError(f"{prefix}.watch", {name: sources}, problem, "Write {name: [{path: …}]}")
        if self.watch and not self.holds_out:
            problem = "it is evaluated beside the run's own held-out documents, and there are none"
            raise InputError(f"{prefix}.watch", sorted(self.watch), problem, "Hold some out, or leave it out")
        if not 0 < self.watch_fraction <= 1:
            problem = "a share lies above 0 and is at most 1"
            raise InputError(f"{prefix}.watch_fraction", self.watch_fraction, problem, "Give e.g. 0.05")
        watched = ((f"watch.{name}", sources) for name, sources in self.watch.items())
        for key, sources in (("sources", self.sources), ("validation", self.validation), *watched):
            for i, source in enumerate(sources):
                source.validate(f"{prefix}.{key}[{i}]")
        if self.block_size < 2:
            raise InputError(
                f"{prefix}.block_size",
                self.block_size,
                "a row of fewer than 2 tokens leaves nothing to predict",
                "Give 2 or more; 256 is a good start",
            )
        if not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"{prefix}.validation_fraction",
                self.validation_fraction,
                "a share lies between 0 (hold out nothing) and 1 (leave nothing to train on)",
                "Give e.g. 0.05",
            )
        for key, least in (("validation_documents", 0), ("shuffle_buffer", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{prefix}.{key}", getattr(self, key), f"it is below {least}", f"Give {least} or more")
