"""Where a stream of packed rows stands: told in small changes, kept up to date, written to a file, gone on from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt_finetune.data.documents import DIGEST
from gpt_finetune.data.reading import Place

Block = tuple[np.ndarray, int]  # its ids (T,), and how many of them are no padding


class Shuffle:
    """Draws each next item by chance from the `size` that came last.

    Args:
        size: How many wait.
        chance: Draws.
        waiting: Those that wait already.
        given: Once nothing more comes, how many of the last ones were given out.

    Attributes:
        changed: Which items came to wait, and at which place, since somebody took the list away; None keeps none.
    """

    def __init__(self, size: int, chance: random.Random, waiting: Iterable[Any] = (), given: int = 0) -> None:
        self.size, self.chance, self.waiting, self.given = size, chance, list(waiting), given
        self.changed: list[tuple[int, Any]] | None = None
        self._last: Any = None

    @property
    def state(self) -> Any:
        """Of the random numbers, to go on with: where nothing more comes, from before the last were put in order."""
        return self.chance.getstate() if self._last is None else self._last

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        """Return the items in their new order."""
        for item in items:
            if len(self.waiting) < self.size:
                self.waiting.append(item)
                self._note(len(self.waiting) - 1, item)
                continue
            place = self.chance.randrange(self.size)
            drawn, self.waiting[place] = self.waiting[place], item
            self._note(place, item)
            yield drawn
        self._last = self.chance.getstate()
        rest = self.waiting.copy()
        self.chance.shuffle(rest)
        while self.given < len(rest):
            self.given += 1
            yield rest[self.given - 1]

    def _note(self, place: int, item: Any) -> None:
        if self.changed is not None:
            self.changed.append((place, item))


@dataclass
class Tokens:
    """What is tokenized and in no block yet.

    Args:
        place: Where the pass over the documents stood then.
        ids: The tokens (N,), the one before them first.
        ledger: The account of the documents read so far.
        digests: How many texts were remembered.
        used: How many blocks were made of them since.
    """

    place: Place
    ids: np.ndarray
    ledger: dict[str, Any]
    digests: int
    used: int = 0


@dataclass
class Change:
    """What became of a shard since its last change: it travels with a batch from the process that reads.

    Args:
        shard: Number of the shard.
        tokens: As they were last read, if they were.
        used: How many blocks were made of the tokens that were read last.
        digests: Those that came to be remembered, one after the other, and how many were before them.
        blocks: The blocks that came to wait, and their places.
        state: Of the shuffle's random numbers.
        given: As `Shuffle` has it.
    """

    shard: int
    tokens: Tokens | None
    used: int
    digests: tuple[int, bytes]
    blocks: list[tuple[int, Block]]
    state: Any
    given: int


@dataclass
class Shard:
    """Where one shard stands: all that its next rows follow from, but for the digests.

    Args:
        tokens: What is tokenized and in no block yet; None before anything is read.
        waiting: The blocks that wait to be drawn.
        state: Of the shuffle's random numbers; None before anything is drawn.
        given: As `Shuffle` has it.
    """

    tokens: Tokens | None = None
    waiting: list[Block] = field(default_factory=list)
    state: Any = None
    given: int = 0

    def follow(self, change: Change) -> None:
        """Bring it up to date."""
        if change.tokens is not None:
            self.tokens = change.tokens
        assert self.tokens is not None, "a row was made of something"
        self.tokens.used = change.used
        for place, block in change.blocks:
            self.waiting[place : place + 1] = [block]
        self.state, self.given = change.state, change.given


@dataclass
class StreamState:
    """Where a stream stands, all its shards together.

    Args:
        epoch: Number of the pass.
        shards: How many there are.
        made_with: The settings that decide what its rows are, by their dotted keys.
        parts: The shards that have begun, by number. One whose rows are all given stays.
        digests: Of all texts that deduplication remembers, in their order: that of the documents, which all shards
            read. A shard knows its own number of them.
        next: The shard whose batch comes next.
    """

    epoch: int
    shards: int
    made_with: dict[str, Any]
    parts: dict[int, Shard] = field(default_factory=dict)
    digests: bytearray = field(default_factory=bytearray)
    next: int = 0

    def follow(self, change: Change) -> None:
        """Bring it up to date."""
        self.parts.setdefault(change.shard, Shard()).follow(change)
        before, digests = change.digests
        self.digests[before * DIGEST : before * DIGEST + len(digests)] = digests
        self.next = (change.shard + 1) % self.shards

    def copy(self) -> StreamState:
        """Return one that may be brought up to date while this one stays; what never changes is shared."""
        parts = {n: replace(part, tokens=part.tokens and replace(part.tokens)) for n, part in self.parts.items()}
        for part in parts.values():
            part.waiting = part.waiting.copy()
        return replace(self, parts=parts)

    def save(self, file: Path, block_size: int) -> None:
        """Write everything to one file of arrays, without pickle.

        Args:
            file: The file.
            block_size: Tokens of a block (T).
        """
        arrays: dict[str, np.ndarray] = {"digests": np.frombuffer(self.digests, np.uint8)}
        told: dict[str, Any] = {name: getattr(self, name) for name in ("epoch", "shards", "made_with", "next")}
        told["parts"] = {}
        for number, part in self.parts.items():
            tokens = part.tokens
            assert tokens is not None
            ids = tokens.ids[tokens.used * (block_size - 1) :]
            arrays[f"{number}.tokens"] = ids
            blocks = [ids for ids, _ in part.waiting]
            arrays[f"{number}.blocks"] = np.stack(blocks) if blocks else np.empty((0, block_size), ids.dtype)
            arrays[f"{number}.lengths"] = np.array([length for _, length in part.waiting], np.int64)
            told["parts"][number] = {
                "place": tokens.place,
                "ledger": tokens.ledger,
                "digests": tokens.digests,
                "state": [part.state[0], list(part.state[1]), part.state[2]],
                "given": part.given,
            }
        arrays["json"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is one of savez's own

    @classmethod
    def load(cls, file: Path) -> StreamState:
        """Undo `save`."""
        with np.load(file, allow_pickle=False) as arrays:
            told = json.loads(arrays["json"].tobytes())
            parts = {}
            for key, part in told.pop("parts").items():
                tokens = Tokens(part["place"], arrays[f"{key}.tokens"], part["ledger"], part["digests"])
                blocks = zip(arrays[f"{key}.blocks"], arrays[f"{key}.lengths"].tolist(), strict=True)
                version, numbers, gauss = part["state"]
                state = (version, tuple(numbers), gauss)
                # copies: a view would keep all of them alive for as long as one waits
                waiting = [(ids.copy(), length) for ids, length in blocks]
                parts[int(key)] = Shard(tokens, waiting, state, part["given"])
            return cls(**told, parts=parts, digests=bytearray(arrays["digests"].tobytes()))
