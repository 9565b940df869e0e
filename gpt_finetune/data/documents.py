"""The documents of all sources as one stream, in an order that seed and epoch decide."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from gpt_finetune.data.config import DataConfig
from gpt_finetune.data.corpus import Fate
from gpt_finetune.data.readers import Document
from gpt_finetune.data.reading import Place, Reading
from gpt_finetune.data.sources import Source, utf8

DIGEST = 16  # bytes


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

    Deduplication is exact within an epoch; it remembers about 100 bytes per document, 16 of them in a checkpoint.

    Args:
        sources: Where documents come from.
        config: Seed and deduplication.
        held_out: xxh3_128 digests of texts that must never be trained on.
    """

    def __init__(self, sources: list[Source], config: DataConfig, held_out: frozenset[bytes] = frozenset()) -> None:
        self.sources, self.config, self.held_out = sources, config, held_out

    def read(self, epoch: int = 0) -> Pass:
        """Read one epoch: every document once, sources taking turns by chance until each is exhausted."""
        return Pass(self, epoch)

    def training(self) -> Iterator[Seen]:
        """Read what the first epoch trains on."""
        return (seen for seen in self.read() if seen.fate is Fate.TRAIN)


class Pass(Iterator[Seen]):
    """One epoch of a stream as it is read.

    Args:
        stream: The stream.
        epoch: Its number, which decides how sources take turns.

    Attributes:
        fresh: Where the digests go that come to be remembered, one after the other; None lets them go.
    """

    def __init__(self, stream: DocumentStream, epoch: int) -> None:
        self.stream = stream
        self._index = 0
        self._chance = random.Random(f"{stream.config.seed} {epoch}")
        self._live = {index: _reading(source) for index, source in enumerate(stream.sources)}
        self._seen: set[bytes] = set()
        self.fresh: bytearray | None = None

    @property
    def digests(self) -> int:
        """How many texts deduplication remembers."""
        return len(self._seen)

    def __next__(self) -> Seen:
        while self._live:
            weights = [self.stream.sources[index].config.weight for index in self._live]
            source = self._chance.choices(list(self._live), weights)[0]
            document = next(self._live[source], None)
            if document is None:
                del self._live[source]
                continue
            data = utf8(document)
            self._index += 1
            return Seen(self._index - 1, source, document, len(data), self._fate(document, data))
        raise StopIteration

    def _fate(self, document: Document, data: bytes) -> Fate:
        if not document.text.strip():
            return Fate.EMPTY
        digest = xxhash.xxh3_128_digest(data)
        if digest in self.stream.held_out:
            return Fate.VALIDATION
        if self.stream.config.deduplicate:
            if digest in self._seen:
                return Fate.DUPLICATE
            self._seen.add(digest)
            if self.fresh is not None:
                self.fresh += digest
        return Fate.TRAIN

    def place(self) -> Place:
        """Return where the next document stands, but for the digests of those before."""
        version, numbers, gauss = self._chance.getstate()
        return {
            "index": self._index,
            "chance": [version, list(numbers), gauss],
            "sources": {str(index): reading.place() for index, reading in self._live.items()},
        }

    def go_on(self, place: Place, digests: bytes) -> None:
        """Continue where another pass stood.

        Args:
            place: What `place` said of it.
            digests: What its deduplication remembered.

        Raises:
            InputError: A source has changed, so that there is no such place.
        """
        version, numbers, gauss = place["chance"]
        self._chance.setstate((version, tuple(numbers), gauss))
        self._index = place["index"]
        self._live = {index: self._live[index] for index in map(int, place["sources"])}
        for index, reading in self._live.items():
            reading.go_on(place["sources"][str(index)])
        self._seen = {digests[i : i + DIGEST] for i in range(0, len(digests), DIGEST)}


def _reading(source: Source) -> Reading:
    documents = source.documents()
    return documents if isinstance(documents, Reading) else Reading(documents)
