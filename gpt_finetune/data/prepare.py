"""From sources to packed training rows: the data room's front door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from gpt_finetune.data.cache import Cache, fingerprint
from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig
from gpt_finetune.data.corpus import Corpus, Fate, Plan, open_streams, require_one_block
from gpt_finetune.data.ledger import Ledger
from gpt_finetune.data.packing import MixedDataset, Row, collate
from gpt_finetune.data.readers import Document
from gpt_finetune.data.sources import Finders, Source, open_source
from gpt_finetune.data.streaming import DocumentStream, StreamingBlocks
from gpt_finetune.data.tokenizer import CorpusEncoder, load_tokenizer, train_tokenizer
from gpt_finetune.errors import InputError

logger = logging.getLogger(__name__)

STREAM_SAMPLE = 10 << 20  # bytes of a stream's start that a tokenizer is trained on


@dataclass(frozen=True)
class Watched:
    """Held-out rows of a domain that a run does not aim at.

    Args:
        rows: To evaluate on.
        tokens_per_byte: Targets, end tokens included, per UTF-8 byte of the text.
    """

    rows: MixedDataset
    tokens_per_byte: float


@dataclass
class PreparedData:
    """Everything that training needs to know about its data.

    Args:
        tokenizer: The tokenizer, to be saved beside the model.
        train: Rows to train on: a `MixedDataset`, or `StreamingBlocks` when streaming.
        validation: Held-out rows, or None.
        ledger: Where every document, byte and token went. When streaming: those of the held-out documents only;
            `train.ledger` is the running account of the rest.
        tokens_per_byte: Tokens per UTF-8 byte of the training text; of its start when streaming.
        xz_bits_per_byte: Bits per byte that `xz -9e` needs for the held-out text; None without any, or above 64 MB.
        fingerprint: Key of the rows: equal keys mean equal rows.
        cache_hit: Whether the packed corpus was found rather than made.
        collate: Stacks rows into a batch.
        watched: Other domains to evaluate on, by name.
    """

    tokenizer: PreTrainedTokenizerBase
    train: MixedDataset | StreamingBlocks
    validation: Dataset | None
    ledger: Ledger
    tokens_per_byte: float
    xz_bits_per_byte: float | None
    fingerprint: str
    cache_hit: bool
    collate: Callable[[list[Row]], Row] = collate
    watched: dict[str, Watched] = field(default_factory=dict)

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training documents."""
        return self.ledger.total.bytes.train

    @property
    def train_tokens(self) -> int:
        """Tokens that are a training target at least once per epoch, end tokens included."""
        return self.ledger.total.tokens.trained

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out documents."""
        return self.ledger.total.bytes.validation

    @property
    def validation_tokens(self) -> int:
        """Targets in the held-out rows, end tokens included: summed loss / ln 2 / bytes gives bits per byte."""
        return self.ledger.total.tokens.validation


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, vocab_limit: int | None = None, finders: Finders | None = None
) -> PreparedData:
    """Turn sources into packed rows: read, deduplicate, split, tokenize, pack; or find the result in the cache.

    Args:
        data: What to read and how to pack it.
        tokenizer: Which tokenizer to load or train.
        vocab_limit: Number of tokens that the model can embed; a larger vocabulary is refused.
        finders: Places besides files and the Hub that sources may lie in, see `open_source`.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    data.validate()
    tokenizer.validate()
    room = _Room(data, tokenizer, vocab_limit, Cache(data.cache_dir), finders or {})
    prepared = room.stream() if data.streaming else room.pack()
    for line in prepared.ledger.table().splitlines():
        logger.info("%s", line)
    return prepared


@dataclass
class _Room:
    """The inputs of `prepare`, shared by its two ways."""

    data: DataConfig
    tokenizer: TokenizerConfig
    vocab_limit: int | None
    cache: Cache
    finders: Finders

    def pack(self) -> PreparedData:
        """Write every row to disk."""
        data = self.data
        domains = self._watched_domains()
        corpus = Corpus(self._open("validation"), self._open("sources"), data, _elsewhere(domains))
        aside = {"elsewhere": sorted(digest.hex() for digest in corpus.elsewhere)} if domains else {}
        content = fingerprint(
            sources=[[asdict(source.config), source.fingerprint()] for source in corpus.training],
            validation=[[asdict(source.config), source.fingerprint()] for source in corpus.held_out],
            split=[data.validation_fraction, data.deduplicate, data.seed],
            **aside,
        )
        plan = cache(corpus.plan)  # read only where the cache has no answer
        tokenizer, encoder = self._tokenizer(
            content, lambda: (document.text for _, document in corpus.replay(plan(), Fate.TRAIN))
        )
        key = fingerprint(content=content, tokenizer=encoder.fingerprint, block_size=data.block_size)
        folder, made, hit = self.cache.get_or_make("corpus", key, lambda at: corpus.write(at, plan(), encoder))
        training = open_streams(folder, made["streams"], Fate.TRAIN)
        ledger = Ledger.from_dict(made["ledger"])
        return PreparedData(
            tokenizer=tokenizer,
            train=corpus.mix(training),
            validation=_validation(folder, made),
            ledger=ledger,
            tokens_per_byte=sum(part.tokens - 1 for part in training.values()) / ledger.total.bytes.train,
            xz_bits_per_byte=made["xz_bits_per_byte"],
            fingerprint=key,
            cache_hit=hit,
            watched=self._watch(domains, encoder),
        )

    def stream(self) -> PreparedData:
        """Write the held-out rows only; the rest is packed as it is read."""
        data = self.data
        sources, domains = self._open("sources"), self._watched_domains()
        elsewhere = _elsewhere(domains)
        if data.validation:
            held_out = Corpus(self._open("validation"), [], data)
        else:
            first = [
                seen.document
                for seen in islice(DocumentStream(sources, data, elsewhere).training(), data.validation_documents)
            ]
            origin = SourceConfig(path=f"the first {len(first)} documents of the stream")
            held_out = Corpus([Source(origin, partial(iter, first), str)] if first else [], [], data)
        plan = held_out.plan() if held_out.sources else None
        digests = plan.digests() if plan else []
        stream = DocumentStream(sources, data, frozenset(digests) | elsewhere)

        limit = STREAM_SAMPLE if self.tokenizer.path is None else STREAM_SAMPLE // 10
        sample, size = _take(stream, limit)
        if not sample:
            raise InputError(
                "data.sources",
                [source.config.path for source in sources],
                f"no document is left to train on after {len(digests)} were held out",
                "Add documents, or lower validation_documents",
            )
        texts = [document.text for document in sample]
        if self.tokenizer.path is None:
            logger.info("The tokenizer is trained on the first %.1f MB of the stream.", size / 1e6)
        tokenizer, encoder = self._tokenizer(fingerprint(texts=texts), lambda: texts)
        tokens = sum(len(ids) + 1 for ids in encoder.documents(sample))
        if size < limit:
            require_one_block(1 + tokens, data.block_size)

        made: dict[str, Any] = {"streams": [], "ledger": Ledger([]).to_dict(), "xz_bits_per_byte": None}
        folder, hit = Path(), True
        if plan is not None:
            held = [[source.config.path for source in held_out.sources], [digest.hex() for digest in digests]]
            key = fingerprint(held_out=held, tokenizer=encoder.fingerprint, block_size=data.block_size)
            folder, made, hit = self.cache.get_or_make("corpus", key, lambda at: held_out.write(at, plan, encoder))
        options = asdict(data) | {"cache_dir": None}
        return PreparedData(
            tokenizer=tokenizer,
            train=StreamingBlocks(stream, encoder, data),
            validation=_validation(folder, made),
            ledger=Ledger.from_dict(made["ledger"]),
            tokens_per_byte=tokens / size,
            xz_bits_per_byte=made["xz_bits_per_byte"],
            fingerprint=fingerprint(options=options, tokenizer=encoder.fingerprint, sample=fingerprint(texts=texts)),
            cache_hit=hit,
            watched=self._watch(domains, encoder),
        )

    def _watched_domains(self) -> dict[str, tuple[Corpus, Plan]]:
        """Read the watched domains and decide which of their documents to evaluate on; the others are left aside."""
        share, found = self.data.watch_fraction, {}
        for name, configs in self.data.watch.items():
            sources = [open_source(c, f"data.watch.{name}[{i}]", False, self.finders) for i, c in enumerate(configs)]
            everything = Corpus(sources, [], self.data)
            split = Corpus([], sources, replace(self.data, validation_fraction=share)) if share < 1 else everything
            try:
                plan = split.plan()
            except InputError as error:
                field = "data.watch_fraction" if error.field == "data.validation_fraction" else f"data.watch.{name}"
                raise InputError(
                    field, error.value, error.problem, "Add documents, or leave the fraction out"
                ) from None
            plan.fate[plan.fate == Fate.TRAIN] = Fate.DUPLICATE
            found[name] = everything, plan
        return found

    def _watch(self, domains: dict[str, tuple[Corpus, Plan]], encoder: CorpusEncoder) -> dict[str, Watched]:
        """Write the rows of the watched domains."""
        watched = {}
        for name, (corpus, plan) in domains.items():
            texts = sorted(digest.hex() for digest in _held_out(plan))
            key = fingerprint(watched=texts, tokenizer=encoder.fingerprint, block_size=self.data.block_size)
            write = partial(corpus.write, plan=plan, encoder=encoder)
            folder, made, _ = self.cache.get_or_make("corpus", key, write)
            account = Ledger.from_dict(made["ledger"]).total
            rows = _validation(folder, made)
            assert rows is not None, "a plan that holds nothing out is refused"
            watched[name] = Watched(rows, account.tokens.validation / account.bytes.validation)
            logger.info("watched: %s, %s documents, %s tokens", name, len(texts), f"{account.tokens.validation:,}")
        return watched

    def _open(self, key: str) -> list[Source]:
        configs: list[SourceConfig] = getattr(self.data, key)
        return [open_source(c, f"data.{key}[{i}]", self.data.streaming, self.finders) for i, c in enumerate(configs)]

    def _tokenizer(
        self, content: str, texts: Callable[[], Iterable[str]]
    ) -> tuple[PreTrainedTokenizerBase, CorpusEncoder]:
        """Load the tokenizer, or train it on `texts`, which `content` identifies."""
        path = self.tokenizer.path

        def train(folder: Path) -> dict[str, Any]:
            train_tokenizer(texts(), self.tokenizer).save_pretrained(folder)
            return {}

        if path is None:
            key = fingerprint(content=content, tokenizer=asdict(self.tokenizer))
            path = str(self.cache.get_or_make("tokenizer", key, train)[0])
        tokenizer = load_tokenizer(path)
        encoder = CorpusEncoder.of(tokenizer)
        if self.vocab_limit is not None and encoder.vocab_size > self.vocab_limit:
            raise InputError(
                "tokenizer",
                self.tokenizer.path or self.tokenizer.vocab_size,
                f"its vocabulary has {encoder.vocab_size} tokens, and the model embeds {self.vocab_limit}",
                f"Set the model's vocab_size to {encoder.vocab_size} or more, or choose a smaller tokenizer",
            )
        return tokenizer, encoder


def _held_out(plan: Plan) -> list[bytes]:
    digests = plan.digests()
    return [digests[index] for index in np.flatnonzero(plan.fate == Fate.VALIDATION)]


def _elsewhere(domains: dict[str, tuple[Corpus, Plan]]) -> frozenset[bytes]:
    return frozenset(digest for _, plan in domains.values() for digest in _held_out(plan))


def _validation(folder: Path, made: dict[str, Any]) -> MixedDataset | None:
    parts = list(open_streams(folder, made["streams"], Fate.VALIDATION).values())
    return MixedDataset(parts, [1.0] * len(parts)) if parts else None


def _take(stream: DocumentStream, limit: int) -> tuple[list[Document], int]:
    """Take documents to train on from the stream's start, until they hold `limit` UTF-8 bytes; return their size."""
    documents, size = [], 0
    for seen in stream.training():
        documents.append(seen.document)
        size += seen.size
        if size >= limit:
            break
    return documents, size
