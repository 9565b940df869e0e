"""Where every row and token of a task went. The sums hold exactly, or `TaskLedger.check` raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

# Why a row is left out: its text was seen before, bears different labels, is held out by another source, or does not
# hold what is to be found in it.
REASONS = ("duplicate", "contradictory", "held_out", "not_in_text")
UNITS = ("examples", "tokens")
_ORDER = ("total", "train", "trained", "validation", "dropped", *REASONS, "truncated")


class TaskLedger:
    """The account of a task's rows, by source.

    Args:
        sources: Paths, as the user wrote them, held-out ones first.
        padding: Tokens that fill packed training rows.
        packed: Tokens in packed training rows, padding not counted.
    """

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources
        self.counts = [{unit: Counter[str]() for unit in UNITS} for _ in sources]
        self.truncated_examples = 0
        self.padding = self.packed = 0

    def add(self, source: int, fate: str, tokens: int, kept: int) -> None:
        """Account for one row.

        Args:
            source: Index of its source.
            fate: train, validation or one of `REASONS`.
            tokens: Of the whole text.
            kept: Of them, what the model gets.
        """
        dropped = fate in REASONS
        for unit, amount in (("examples", 1), ("tokens", tokens)):
            account = self.counts[source][unit]
            account["total"] += amount
            if dropped:
                account.update({"dropped": amount, fate: amount})
        if dropped:
            return
        examples, account = (self.counts[source][unit] for unit in UNITS)
        examples[fate] += 1
        account["trained" if fate == "train" else fate] += kept
        account.update({"dropped": tokens - kept, "truncated": tokens - kept})
        self.truncated_examples += kept < tokens

    def check(self) -> None:
        """Hold every sum to account.

        Raises:
            AssertionError: A sum does not hold: something was lost or counted twice.
        """
        for source, units in zip(self.sources, self.counts, strict=True):
            for unit, got in units.items():
                reasons = sum(got[name] for name in (*REASONS, "truncated"))
                kept = got["train"] + got["trained"] + got["validation"]
                if got["total"] != kept + got["dropped"] or got["dropped"] != reasons:
                    raise AssertionError(f"{source}: the {unit} do not add up: {dict(got)}")

    @property
    def total(self) -> dict[str, dict[str, int]]:
        """The sum over all sources."""
        sums = {unit: sum((units[unit] for units in self.counts), Counter[str]()) for unit in UNITS}
        return {unit: _ordered(counts) for unit, counts in sums.items()}

    @property
    def packing_efficiency(self) -> float | None:
        """Share of the packed training rows that is no padding; None without packing."""
        return self.packed / (self.packed + self.padding) if self.packed else None

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, fit for JSON."""
        sources = [
            {"source": path, **{unit: _ordered(counts) for unit, counts in units.items()}}
            for path, units in zip(self.sources, self.counts, strict=True)
        ]
        facts = {"truncated_examples": self.truncated_examples, "packing_efficiency": self.packing_efficiency}
        return {"sources": sources, "total": {**self.total, **facts}}

    def lines(self) -> list[str]:
        """Return what happened, a line a source and unit, for the log."""
        named = zip(self.sources, self.counts, strict=True)
        return [
            f"{source}: {unit} " + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in _ordered(counts).items())
            for source, units in named
            for unit, counts in units.items()
        ]


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in _ORDER if counts.get(name)}
