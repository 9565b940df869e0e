"""Where every document, byte and token went. The sums hold exactly, or `Ledger.check` raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Fates:
    """Documents, or their UTF-8 bytes.

    Args:
        total: All that was read.
        train: Kept for training.
        validation: Held out.
        duplicate: Left out: the same text was seen before.
        empty: Left out: nothing but white space.
    """

    total: int = 0
    train: int = 0
    validation: int = 0
    duplicate: int = 0
    empty: int = 0


@dataclass
class TokenFates:
    """Content tokens: those of each document that is not empty, and its end token.

    Args:
        total: All of them.
        trained: A training target at least once per epoch.
        validation: A validation target.
        masked: Seen but never a target; 0 in pre-training.
        dropped: Duplicates' tokens, and those in blocks that a weight below 1 leaves out.
        separators: Added, not content: the end token that opens each stream as context.
        padding: Added, not content: fills the last block of each stream.
        per_epoch: Training targets per epoch, each copy counted.
    """

    total: int = 0
    trained: int = 0
    validation: int = 0
    masked: int = 0
    dropped: int = 0
    separators: int = 0
    padding: int = 0
    per_epoch: int = 0


@dataclass
class SourceLedger:
    """The account of one source.

    Args:
        source: Its path, as the user wrote it.
        documents: What became of its documents.
        bytes: What became of their UTF-8 bytes.
        tokens: What became of their tokens.
    """

    source: str
    documents: Fates = field(default_factory=Fates)
    bytes: Fates = field(default_factory=Fates)
    tokens: TokenFates = field(default_factory=TokenFates)


@dataclass
class Ledger:
    """The account of a corpus.

    Args:
        sources: One account per source, in the order of the config.
    """

    sources: list[SourceLedger]

    @property
    def total(self) -> SourceLedger:
        """The sum over all sources."""
        total = SourceLedger("total")
        for source in self.sources:
            for mine, theirs in (
                (total.documents, source.documents),
                (total.bytes, source.bytes),
                (total.tokens, source.tokens),
            ):
                for part in fields(mine):
                    setattr(mine, part.name, getattr(mine, part.name) + getattr(theirs, part.name))
        return total

    def check(self) -> None:
        """Hold every sum to account.

        Raises:
            AssertionError: A sum does not hold: something was lost or counted twice.
        """
        for source in [*self.sources, self.total]:
            for unit, got in (("documents", source.documents), ("bytes", source.bytes)):
                if got.total != got.train + got.validation + got.duplicate + got.empty:
                    raise AssertionError(f"{source.source}: the {unit} do not add up: {got}")
            tokens = source.tokens
            if tokens.total != tokens.trained + tokens.validation + tokens.masked + tokens.dropped:
                raise AssertionError(f"{source.source}: the tokens do not add up: {tokens}")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, fit for JSON."""
        return {"sources": [asdict(source) for source in self.sources], "total": asdict(self.total)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ledger:
        """Undo `to_dict`."""
        return cls(
            [
                SourceLedger(s["source"], Fates(**s["documents"]), Fates(**s["bytes"]), TokenFates(**s["tokens"]))
                for s in data["sources"]
            ]
        )

    def table(self) -> str:
        """Return an aligned table for the log: one line per source and unit."""
        rows = [["source", "unit", "total", "train", "validation", "duplicate", "empty", "dropped", "padding"]]
        for s in [*self.sources, self.total] if len(self.sources) > 1 else self.sources:
            for unit, got in (("documents", s.documents), ("bytes", s.bytes)):
                counts = [got.total, got.train, got.validation, got.duplicate, got.empty]
                rows.append([s.source, unit, *(f"{n:,}" for n in counts), "", ""])
            t = s.tokens
            counts = [t.total, t.trained, t.validation]
            rows.append([s.source, "tokens", *(f"{n:,}" for n in counts), "", "", f"{t.dropped:,}", f"{t.padding:,}"])
        return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with straight columns: names on the left, counts on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)
