"""Corpora that do not fit on disk: read, filter, tokenize and pack on the fly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from gpt_finetune.data.config import DataConfig
from gpt_finetune.data.corpus import Fate, batched
from gpt_finetune.data.documents import DIGEST, DocumentStream, Seen
from gpt_finetune.data.ledger import Ledger, SourceLedger
from gpt_finetune.data.packing import Row, join_documents, to_rows
from gpt_finetune.data.readers import Document
from gpt_finetune.data.resuming import Block, Change, Shard, Shuffle, StreamState, Tokens
from gpt_finetune.data.tokenizer import CorpusEncoder

__all__ = ["DocumentStream", "Seen", "StreamingBlocks", "shuffled"]

T = TypeVar("T")
BATCH = 1 << 18  # characters encoded at a time: small, so that the first row comes soon


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
        followed: Whether somebody asks for `change` after each batch; else nothing is noted.
        begin: Where the pass of its epoch begins; None at the first document.
    """

    def __init__(self, stream: DocumentStream, encoder: CorpusEncoder, config: DataConfig) -> None:
        self.stream, self.encoder, self.config = stream, encoder, config
        self.rank, self.world_size, self.epoch = 0, 1, 0
        self.followed = False
        self.begin: StreamState | None = None
        self._running: BlockPass | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose another order for the next pass."""
        self.epoch = epoch

    @property
    def ledger(self) -> Ledger:
        """The running account of the present pass, in this process; dataloader workers keep their own.

        Every copy of a held-out text counts as validation. Padding is not counted: sources share rows.
        """
        if self._running is None:
            return open_ledger(self.stream)
        return self._running.ledger

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        if worker is not None:
            # Workers are parallel already, and the tokenizer's own threads do not survive a fork.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        workers, me = (worker.num_workers, worker.id) if worker else (1, 0)
        begin = self.begin if self.begin is not None and self.begin.epoch == self.epoch else None
        if begin is not None:
            me = (me + begin.next) % workers  # the first worker's batch comes first
        self._running = BlockPass(self, self.rank * workers + me, self.world_size * workers, begin)
        return iter(self._running)

    def change(self) -> Change:
        """Return what became of this process's shard since the last call: after a row is given, before the next one."""
        assert self._running is not None, "nothing is read yet"
        return self._running.change()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": None}


class BlockPass:
    """One pass over one shard of a stream.

    Args:
        rows: The stream, packed.
        shard: Which documents are read: those whose number has this remainder.
        shards: How many shards there are.
        begin: Where it begins; None at the first document.

    Attributes:
        ledger: The account of what was read so far.
    """

    def __init__(self, rows: StreamingBlocks, shard: int, shards: int, begin: StreamState | None) -> None:
        self.encoder, self.config, self.shard, self.shards = rows.encoder, rows.config, shard, shards
        self.ledger = open_ledger(rows.stream)
        self._documents = rows.stream.read(rows.epoch)
        self._tokens = Tokens({}, np.array([self.encoder.eos_id], self.encoder.dtype), {}, 0)
        self._followed, self._is_new = rows.followed, False
        part = Shard() if begin is None else begin.parts.get(shard, Shard())
        chance = random.Random(f"{self.config.seed} {rows.epoch} {shard}")
        if begin is not None and part.tokens is not None:
            chance.setstate(part.state)
            self._tokens = replace(part.tokens)
            self.ledger = Ledger.from_dict(part.tokens.ledger)
            self._documents.go_on(part.tokens.place, bytes(begin.digests[: part.tokens.digests * DIGEST]))
        self._shuffle = Shuffle(self.config.shuffle_buffer, chance, part.waiting, part.given)
        if self._followed:
            self._shuffle.changed, self._documents.fresh = [], bytearray()

    def __iter__(self) -> Iterator[Row]:
        for ids, length in self._shuffle(self._blocks()):
            yield to_rows(ids[None].astype(np.int64), np.array([length]))[0]

    def change(self) -> Change:
        """Return what has happened since the last call."""
        assert self._shuffle.changed is not None and self._documents.fresh is not None, "it is not followed"
        digests, blocks = bytes(self._documents.fresh), self._shuffle.changed
        before = self._documents.digests - len(digests) // DIGEST
        tokens = replace(self._tokens) if self._is_new else None
        self._documents.fresh.clear()
        self._shuffle.changed, self._is_new = [], False
        used, state, given = self._tokens.used, self._shuffle.state, self._shuffle.given
        return Change(self.shard, tokens, used, (before, digests), blocks, state, given)

    def _blocks(self) -> Iterator[Block]:
        """Pack this shard's documents; yield the ids of a block (T,) and how many are no padding."""
        size, stride = self.config.block_size, self.config.block_size - 1
        eos = np.array([self.encoder.eos_id], self.encoder.dtype)
        batches = batched(self._mine(), BATCH)
        while True:
            tokens = self._tokens
            count = (len(tokens.ids) - 1) // stride
            while tokens.used < count:
                start = tokens.used * stride
                tokens.used += 1
                # Copies: a view would keep the whole batch alive for as long as a block waits to be shuffled.
                yield tokens.ids[start : start + size].copy(), size
            rest = tokens.ids[count * stride :]
            batch = next(batches, None)
            if batch is None:
                break
            arrays = self.encoder.documents([document for _, document in batch])
            for (source, _), ids in zip(batch, arrays, strict=True):
                account = self.ledger.sources[source].tokens
                for kind in ("total", "trained", "per_epoch"):
                    setattr(account, kind, getattr(account, kind) + len(ids) + 1)
            self._hold(np.concatenate([rest, join_documents(arrays, eos)]))
        self._hold(rest[-1:])
        if len(rest) > 1:
            yield np.pad(rest, (0, size - len(rest)), constant_values=self.encoder.pad_id), len(rest)

    def _hold(self, ids: np.ndarray) -> None:
        """Hold tokens that are in no block yet; where somebody follows, with the place that the documents stand in."""
        if self._followed:
            documents = self._documents
            self._tokens = Tokens(documents.place(), ids, self.ledger.to_dict(), documents.digests)
        else:
            self._tokens = Tokens({}, ids, {}, 0)
        self._is_new = True

    def _mine(self) -> Iterator[tuple[int, Document]]:
        """Yield the documents to train on with their source, and account for all that are this shard's."""
        for seen in self._documents:
            if seen.index % self.shards != self.shard:
                continue
            account = self.ledger.sources[seen.source]
            for unit, amount in ((account.documents, 1), (account.bytes, seen.size)):
                for kind in ("total", seen.fate.name.lower()):
                    setattr(unit, kind, getattr(unit, kind) + amount)
            if seen.fate is Fate.TRAIN:
                yield seen.source, seen.document


def open_ledger(stream: DocumentStream) -> Ledger:
    """Return an account of a stream's sources in which nothing stands yet."""
    return Ledger([SourceLedger(source.config.path) for source in stream.sources])


def shuffled(items: Iterable[T], buffer: int, chance: random.Random) -> Iterator[T]:
    """Draw each next item by chance from the `buffer` that came last."""
    return Shuffle(buffer, chance)(items)
