"""A materialised corpus: which document goes where, decided by content alone, and its token streams on disk.

The texts are read again in each pass rather than kept: a document costs some 40 bytes of memory, however long it is.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash
from tqdm import tqdm

from gpt_finetune.data.baseline import LIMIT as XZ_LIMIT
from gpt_finetune.data.baseline import xz_bits_per_byte
from gpt_finetune.data.config import DataConfig
from gpt_finetune.data.ledger import Ledger, SourceLedger
from gpt_finetune.data.packing import MixedDataset, PackedDataset, TokenWriter
from gpt_finetune.data.readers import Document
from gpt_finetune.data.sources import Source, utf8
from gpt_finetune.data.tokenizer import BATCH, CorpusEncoder
from gpt_finetune.errors import InputError

logger = logging.getLogger(__name__)


class Fate(IntEnum):
    """What becomes of a document; the names are the ledger's fields."""

    TRAIN = 0
    VALIDATION = 1
    DUPLICATE = 2
    EMPTY = 3


@dataclass
class Plan:
    """The decision about each document, in reading order (D documents).

    Args:
        source: Index of its source (D,).
        size: UTF-8 bytes (D,).
        digest: xxh3_128 of the text: 16 bytes each, end to end.
        fate: A `Fate` (D,).
        first: Index of the first document with the same text (D,).
    """

    source: np.ndarray
    size: np.ndarray
    digest: bytes
    fate: np.ndarray
    first: np.ndarray

    def digests(self) -> list[bytes]:
        """Return the digest of each document."""
        return [self.digest[i : i + 16] for i in range(0, len(self.digest), 16)]


@dataclass
class Corpus:
    """The opened sources of a corpus, held-out ones first: they keep a text that training sources share with them.

    Args:
        held_out: Sources whose documents are all held out.
        training: Sources to train on.
        config: Split and packing options.
        elsewhere: xxh3_128 digests of texts that are held out for another purpose: never trained on either.
    """

    held_out: list[Source]
    training: list[Source]
    config: DataConfig
    elsewhere: frozenset[bytes] = frozenset()

    @property
    def sources(self) -> list[Source]:
        """All sources in reading order."""
        return [*self.held_out, *self.training]

    def read(self) -> Iterator[tuple[int, Document]]:
        """Yield every document with the index of its source."""
        for index, source in enumerate(self.sources):
            for document in source.documents():
                yield index, document

    def plan(self) -> Plan:
        """Read everything once and decide what becomes of each document.

        Raises:
            InputError: Nothing is left to train on, or a single document cannot be split.
        """
        source, size, order, empty = array("i"), array("q"), array("Q"), array("b")
        digest = bytearray()
        for index, document in tqdm(self.read(), desc="reading", unit=" documents", delay=2):
            data = utf8(document)
            source.append(index)
            size.append(len(data))
            empty.append(not document.text.strip())
            order.append(xxhash.xxh3_64_intdigest(data, seed=self.config.seed))
            digest += xxhash.xxh3_128_digest(data)
        if not source:
            self._refuse_nothing([])
        keys = np.frombuffer(bytes(digest), dtype="V16")
        _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
        plan = Plan(
            source=np.array(source),
            size=np.array(size),
            digest=bytes(digest),
            fate=np.full(len(source), Fate.TRAIN, np.int8),
            first=firsts[inverse],
        )
        index = np.arange(len(plan.fate))
        if self.config.deduplicate:
            plan.fate[plan.first != index] = Fate.DUPLICATE
        plan.fate[np.array(empty, bool)] = Fate.EMPTY
        if self.elsewhere:
            taken = np.array([digest in self.elsewhere for digest in plan.digests()])
            plan.fate[taken & (plan.source >= len(self.held_out)) & (plan.fate == Fate.TRAIN)] = Fate.DUPLICATE
        if self.held_out:
            plan.fate[(plan.source < len(self.held_out)) & (plan.fate == Fate.TRAIN)] = Fate.VALIDATION
            leaked = (plan.fate == Fate.TRAIN) & (plan.source[plan.first] < len(self.held_out))
            if leaked.any():  # only without deduplication
                logger.warning("%d training documents are held out as well: validation flatters.", leaked.sum())
        elif self.config.validation_fraction:
            self._split(plan, np.array(order))
        needed = Fate.TRAIN if self.training else Fate.VALIDATION
        if not (plan.fate == needed).any() or (self.held_out and not (plan.fate == Fate.VALIDATION).any()):
            self._refuse_nothing(plan.fate)
        return plan

    def replay(self, plan: Plan, *fates: Fate) -> Iterator[tuple[int, Document]]:
        """Read again, and yield the documents of these fates with their index.

        Raises:
            InputError: The documents are no longer those of the plan.
        """
        index = -1
        for index, (_, document) in enumerate(self.read()):
            if plan.digest[16 * index : 16 * index + 16] != xxhash.xxh3_128_digest(utf8(document)):
                raise InputError(document.origin, "", "it changed while it was being read", "Run again")
            if plan.fate[index] in fates:
                yield index, document
        if index + 1 != len(plan.fate):
            raise InputError("data.sources", index + 1, "documents vanished while they were being read", "Run again")

    def write(self, folder: Path, plan: Plan, encoder: CorpusEncoder) -> dict[str, Any]:
        """Encode every kept document into one stream per source and split.

        Args:
            folder: Where the streams are written.
            plan: What to do with each document.
            encoder: Turns text into ids.

        Returns:
            Plain values from which `open_streams` and `Ledger.from_dict` find everything again.

        Raises:
            InputError: The training tokens do not fill one block.
        """
        counts = np.zeros(len(plan.fate), np.int64)  # tokens of each document, its end token included
        held_out: list[str] | None = [] if plan.size[plan.fate == Fate.VALIDATION].sum() <= XZ_LIMIT else None
        writers: dict[tuple[int, Fate], TokenWriter] = {}
        total = int(plan.size[plan.fate <= Fate.VALIDATION].sum())
        with ExitStack() as stack, tqdm(total=total, desc="tokenizing", unit="B", unit_scale=True, delay=2) as bar:
            for batch in batched(self.replay(plan, Fate.TRAIN, Fate.VALIDATION)):
                groups: dict[tuple[int, Fate], list[np.ndarray]] = {}
                for (index, document), ids in zip(batch, encoder.documents([d for _, d in batch]), strict=True):
                    counts[index] = len(ids) + 1
                    key = int(plan.source[index]), Fate(plan.fate[index])
                    groups.setdefault(key, []).append(ids)
                    if held_out is not None and key[1] is Fate.VALIDATION:
                        held_out.append(document.text)
                    bar.update(int(plan.size[index]))
                for key, arrays in groups.items():
                    if key not in writers:
                        file = folder / f"{key[0]}-{key[1].name.lower()}.bin"
                        writer = TokenWriter(
                            file, encoder.dtype, encoder.eos_id, encoder.pad_id, self.config.block_size
                        )
                        writers[key] = stack.enter_context(writer)
                    writers[key].write(arrays)
        streams = [
            {
                "source": source,
                "fate": fate.name,
                "file": writer.file.name,
                "dtype": encoder.dtype.name,
                "tokens": writer.tokens,
                "block_size": self.config.block_size,
            }
            for (source, fate), writer in sorted(writers.items())
        ]
        if self.training:
            tokens = 1 + sum(writer.tokens - 1 for (_, fate), writer in writers.items() if fate is Fate.TRAIN)
            require_one_block(tokens, self.config.block_size)
        ledger = self._ledger(folder, plan, counts, streams)
        ledger.check()
        return {
            "streams": streams,
            "ledger": ledger.to_dict(),
            "xz_bits_per_byte": None if held_out is None else xz_bits_per_byte(held_out),
        }

    def mix(self, streams: dict[int, PackedDataset]) -> MixedDataset:
        """Mix the training streams, found by source, as the sources' weights say."""
        weights = [self.sources[source].config.weight for source in streams]
        return MixedDataset(list(streams.values()), weights, self.config.seed)

    def _ledger(self, folder: Path, plan: Plan, counts: np.ndarray, streams: list[dict[str, Any]]) -> Ledger:
        """Account for everything: totals from the documents, fates from the streams, so that the sums prove it."""
        training = open_streams(folder, streams, Fate.TRAIN)
        rows = dict(zip(training, self.mix(training).rows, strict=True))
        held_out = open_streams(folder, streams, Fate.VALIDATION)
        accounts = []
        for source, opened in enumerate(self.sources):
            account = SourceLedger(opened.config.path)
            mine = plan.source == source
            for unit, amounts in ((account.documents, np.ones_like(plan.size)), (account.bytes, plan.size)):
                unit.total = int(amounts[mine].sum())
                for fate in Fate:
                    setattr(unit, fate.name.lower(), int(amounts[mine & (plan.fate == fate)].sum()))
            tokens = account.tokens
            # A duplicate was never encoded, but it has the tokens of the first document with its text.
            of_text = counts[plan.first]
            tokens.total = int(of_text[mine & (plan.fate != Fate.EMPTY)].sum())
            tokens.dropped = int(of_text[mine & (plan.fate == Fate.DUPLICATE)].sum())
            for part in (streams[source] for streams in (training, held_out) if source in streams):
                tokens.separators += 1
                tokens.padding += part.padding
            if source in held_out:
                tokens.validation = held_out[source].tokens - 1
            if source in training:
                part, chosen = training[source], np.unique(rows[source])
                tokens.trained = part.targets(chosen)
                tokens.dropped += part.targets(np.setdiff1d(np.arange(len(part)), chosen))
                tokens.per_epoch = part.targets(rows[source])
            accounts.append(account)
        return Ledger(accounts)

    def _split(self, plan: Plan, order: np.ndarray) -> None:
        """Hold out texts in the order of their hash until the fraction of bytes is reached.

        The order of the files plays no part, and copies of a text stay together. A text larger than the whole
        held-out share is passed over, or one big file could swallow the training data.
        """
        fraction = self.config.validation_fraction
        kept = plan.fate == Fate.TRAIN
        texts = np.unique(plan.first[kept])
        if len(texts) == 1:
            raise InputError(
                "data.validation_fraction",
                fraction,
                "there is one document only, and documents are held out whole",
                "Add documents, name data.validation, part the file with separator, or set validation_fraction to 0",
            )
        if not len(texts):
            return
        size = np.bincount(plan.first[kept], weights=plan.size[kept])  # bytes of all copies of a text
        target = fraction * size.sum()
        small = texts[size[texts] <= max(target, size[texts].min())]
        ranked = small[np.argsort(order[small])]
        held_out = ranked[np.cumsum(size[ranked]) - size[ranked] < target]
        if len(held_out) == len(texts):
            held_out = held_out[:-1]
        plan.fate[kept & np.isin(plan.first, held_out)] = Fate.VALIDATION

    def _refuse_nothing(self, fates: Sequence[int] | np.ndarray) -> NoReturn:
        count = {fate: int(np.sum(np.asarray(fates) == fate)) for fate in Fate}
        raise InputError(
            "data.sources",
            [source.config.path for source in self.sources],
            f"no document is left to train on or to hold out: {len(fates)} read, {count[Fate.EMPTY]} empty, "
            f"{count[Fate.DUPLICATE]} duplicates, {count[Fate.VALIDATION]} held out",
            "Add text that differs, or set deduplicate to false",
        )


def open_streams(folder: Path, streams: list[dict[str, Any]], fate: Fate) -> dict[int, PackedDataset]:
    """Open the streams of one fate, by source."""
    return {
        s["source"]: PackedDataset(folder / s["file"], s["dtype"], s["tokens"], s["block_size"])
        for s in streams
        if s["fate"] == fate.name
    }


def batched(documents: Iterator[tuple[int, Document]], limit: int = BATCH) -> Iterator[list[tuple[int, Document]]]:
    """Group documents until a group holds `limit` characters."""
    batch, size = [], 0
    for item in documents:
        batch.append(item)
        size += len(item[1].text)
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def require_one_block(tokens: int, block_size: int) -> None:
    """Refuse a corpus that does not fill one row.

    Raises:
        InputError: There are fewer tokens than one block.
    """
    if tokens < block_size:
        raise InputError(
            "data.block_size",
            block_size,
            f"the training documents hold {tokens} tokens, not enough for one row",
            f"Add text, or set block_size to {tokens} or less",
        )
