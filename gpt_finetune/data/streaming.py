"""Corpora that do not fit on disk: read, filter, tokenize and pack on the fly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xxhash
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.data import IterableDataset, get_worker_info

from gpt_finetune.data.config import DataConfig
from gpt_finetune.data.corpus import Fate, batched
from gpt_finetune.data.ledger import Ledger, SourceLedger
from gpt_finetune.data.packing import Row, join_documents, to_rows
from gpt_finetune.data.readers import Document
from gpt_finetune.data.sources import Source, utf8
from gpt_finetune.data.tokenizer import CorpusEncoder

T = TypeVar("T")
BATCH = 1 << 18  # characters encoded at a time: small, so that the first row comes soon


@dataclass
class Seen:
    """A document as it passes by.

    Args:
        index: Its number in the whole stream.
        source: Index of its source.
        document: Itself.
        size: UTF-8 bytes.
        fate: What becomes of it.
    """

    index: int
    source: int
    document: Document
    size: int
    fate: Fate


class DocumentStream:
    """The documents of all sources in one order, each with its fate. Every process sees the same stream.

    Deduplication is exact within an epoch; it remembers about 100 bytes per document.

    Args:
        sources: Where documents come from.
        config: Seed and deduplication.
        held_out: xxh3_128 digests of texts that must never be trained on.
    """

    def __init__(self, sources: list[Source], config: DataConfig, held_out: frozenset[bytes] = frozenset()) -> None:
        self.sources, self.config, self.held_out = sources, config, held_out

    def read(self, epoch: int = 0) -> Iterator[Seen]:
        """Read one epoch: every document once, sources taking turns by chance until each is exhausted."""
        seen: set[bytes] = set()
        for index, (source, document) in enumerate(self._interleave(epoch)):
            data = utf8(document)
            digest = xxhash.xxh3_128_digest(data)
            if not document.text.strip():
                fate = Fate.EMPTY
            elif digest in self.held_out:
                fate = Fate.VALIDATION
            elif self.config.deduplicate and digest in seen:
                fate = Fate.DUPLICATE
            else:
                fate = Fate.TRAIN
                seen.add(digest)
            yield Seen(index, source, document, len(data), fate)

    def training(self) -> Iterator[Seen]:
        """Read what the first epoch trains on."""
        return (seen for seen in self.read() if seen.fate is Fate.TRAIN)

    def _interleave(self, epoch: int) -> Iterator[tuple[int, Document]]:
        live = {index: source.documents() for index, source in enumerate(self.sources)}
        chance = random.Random(f"{self.config.seed} {epoch}")
        while live:
            source = chance.choices(list(live), [self.sources[index].config.weight for index in live])[0]
            document = next(live[source], None)
            if document is None:
                del live[source]
            else:
                yield source, document


class StreamingBlocks(IterableDataset):
    """Rows packed on the fly, as `packing` describes, from documents that pass by.

    Set `rank` and `world_size` to give each process its own documents; dataloader workers divide them further. Document
    i belongs to shard `i % shards`, so shards are disjoint and together complete. Each shard reads all and tokenizes
    its own. The order is a function of seed, epoch and shard alone.

    Args:
        stream: The documents.
        encoder: Turns text into ids.
        config: Block size, shuffle buffer and seed.

    Attributes:
        ledger: The running account of the present pass, in this process; dataloader workers keep their own. Every
            copy of a held-out text counts as validation. Padding is not counted: sources share rows.
    """

    def __init__(self, stream: DocumentStream, encoder: CorpusEncoder, config: DataConfig) -> None:
        self.stream, self.encoder, self.config = stream, encoder, config
        self.rank, self.world_size, self.epoch = 0, 1, 0
        self.ledger = self._open_ledger()

    def set_epoch(self, epoch: int) -> None:
        """Choose another order for the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        if worker is not None:
            # Workers are parallel already, and the tokenizer's own threads do not survive a fork.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        workers, me = (worker.num_workers, worker.id) if worker else (1, 0)
        shard, shards = self.rank * workers + me, self.world_size * workers
        self.ledger = self._open_ledger()
        chance = random.Random(f"{self.config.seed} {self.epoch} {shard}")
        for ids, length in shuffled(self._blocks(shard, shards), self.config.shuffle_buffer, chance):
            yield to_rows(ids[None].astype(np.int64), np.array([length]))[0]

    def _blocks(self, shard: int, shards: int) -> Iterator[tuple[np.ndarray, int]]:
        """Pack this shard's documents; yield the ids of a block (T,) and how many are no padding."""
        size, stride = self.config.block_size, self.config.block_size - 1
        eos = rest = np.array([self.encoder.eos_id], self.encoder.dtype)
        for batch in batched(self._mine(shard, shards), BATCH):
            arrays = self.encoder.documents([document for _, document in batch])
            for (source, _), ids in zip(batch, arrays, strict=True):
                tokens = self.ledger.sources[source].tokens
                for kind in ("total", "trained", "per_epoch"):
                    setattr(tokens, kind, getattr(tokens, kind) + len(ids) + 1)
            rest = np.concatenate([rest, join_documents(arrays, eos)])
            count = (len(rest) - 1) // stride
            if count:
                # Copies: a view would keep the whole batch alive for as long as a block waits to be shuffled.
                yield from ((block.copy(), size) for block in sliding_window_view(rest, size)[::stride])
            rest = rest[count * stride :]
        if len(rest) > 1:
            yield np.pad(rest, (0, size - len(rest)), constant_values=self.encoder.pad_id), len(rest)

    def _mine(self, shard: int, shards: int) -> Iterator[tuple[int, Document]]:
        """Yield the documents to train on with their source, and account for all that are this shard's."""
        for seen in self.stream.read(self.epoch):
            if seen.index % shards != shard:
                continue
            account = self.ledger.sources[seen.source]
            for unit, amount in ((account.documents, 1), (account.bytes, seen.size)):
                for kind in ("total", seen.fate.name.lower()):
                    setattr(unit, kind, getattr(unit, kind) + amount)
            if seen.fate is Fate.TRAIN:
                yield seen.source, seen.document

    def _open_ledger(self) -> Ledger:
        return Ledger([SourceLedger(source.config.path) for source in self.stream.sources])


def shuffled(items: Iterable[T], buffer: int, chance: random.Random) -> Iterator[T]:
    """Draw each next item by chance from the `buffer` that came last."""
    waiting: list[T] = []
    for item in items:
        if len(waiting) < buffer:
            waiting.append(item)
            continue
        drawn = chance.randrange(buffer)
        yield waiting[drawn]
        waiting[drawn] = item
    chance.shuffle(waiting)
    yield from waiting
