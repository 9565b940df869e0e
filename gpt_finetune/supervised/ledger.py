"""Where every example and token went. The sums hold exactly, or `ExampleLedger.check` raises."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gpt_finetune.data.ledger import aligned

FATES = ("train", "trained", "validation", "masked", "dropped")
# Why an example is left out, in the order of the table.
REASONS = ("limit", "duplicate", "held_out", "too_long", "answer_cut", "weight")


@dataclass
class ExampleFates:
    """Examples: rows of the sources.

    Args:
        total: All that were read.
        train: Kept for training.
        validation: Held out.
        dropped: Left out, for one of the reasons that follow.
        limit: The source was to give fewer; their tokens are not counted.
        duplicate: The same example was seen before.
        held_out: An example that opens the same way is held out.
        too_long: Longer than max_length, where these are to be dropped.
        answer_cut: Nothing to learn was left of it within max_length.
        weight: The source's weight below 1 chose others.
    """

    total: int = 0
    train: int = 0
    validation: int = 0
    dropped: int = 0
    limit: int = 0
    duplicate: int = 0
    held_out: int = 0
    too_long: int = 0
    answer_cut: int = 0
    weight: int = 0


@dataclass
class ExampleTokens:
    """Tokens of the examples, special ones included.

    Args:
        total: All of them.
        trained: A training target at least once per epoch.
        validation: A validation target.
        masked: Seen by the model, in training or validation, but never a target.
        dropped: Seen by nothing, for one of the reasons that follow.
        limit: See `ExampleFates`, as all reasons but the last; 0, since these are not tokenized.
        duplicate: See there.
        held_out: See there.
        too_long: See there.
        answer_cut: See there.
        weight: See there.
        truncated: Cut off the end of an example that is kept.
        padding: Added, not content: fills packed rows.
        per_epoch: Training targets per epoch, each copy counted.
    """

    total: int = 0
    trained: int = 0
    validation: int = 0
    masked: int = 0
    dropped: int = 0
    limit: int = 0
    duplicate: int = 0
    held_out: int = 0
    too_long: int = 0
    answer_cut: int = 0
    weight: int = 0
    truncated: int = 0
    padding: int = 0
    per_epoch: int = 0


@dataclass
class SourceAccount:
    """The account of one source.

    Args:
        source: Its path, as the user wrote it.
        examples: What became of its examples.
        tokens: What became of their tokens.
        truncated_examples: Kept examples whose end was cut off.
        split_examples: Texts that go on in further examples.
        retokenized_examples: Kept examples in which tokenising the whole at once would give other tokens, which span
            the border of an answer; a model that is asked never sees those.
    """

    source: str
    examples: ExampleFates = field(default_factory=ExampleFates)
    tokens: ExampleTokens = field(default_factory=ExampleTokens)
    truncated_examples: int = 0
    split_examples: int = 0
    retokenized_examples: int = 0

    def drop(self, reason: str, tokens: int) -> None:
        """Count one example as left out, with all its tokens."""
        for account, amount in ((self.examples, 1), (self.tokens, tokens)):
            for name in ("dropped", reason):
                setattr(account, name, getattr(account, name) + amount)


@dataclass
class ExampleLedger:
    """The account of a set of examples.

    Args:
        sources: One account per source, held-out ones first.
        padding: Tokens that fill the packed training rows, which sources share.
        packed: Tokens in the packed training rows, padding not counted.
    """

    sources: list[SourceAccount]
    padding: int = 0
    packed: int = 0

    @property
    def total(self) -> SourceAccount:
        """The sum over all sources, with the padding."""
        total = SourceAccount("total")
        for source in self.sources:
            for mine, theirs in ((total.examples, source.examples), (total.tokens, source.tokens), (total, source)):
                for part in fields(mine):
                    if isinstance(getattr(mine, part.name), int):
                        setattr(mine, part.name, getattr(mine, part.name) + getattr(theirs, part.name))
        total.tokens.padding = self.padding
        return total

    @property
    def packing_efficiency(self) -> float | None:
        """Share of the packed training rows that is no padding; None without packing."""
        return self.packed / (self.packed + self.padding) if self.packed else None

    def check(self) -> None:
        """Hold every sum to account.

        Raises:
            AssertionError: A sum does not hold: something was lost or counted twice.
        """
        for source in [*self.sources, self.total]:
            for unit, got in (("examples", vars(source.examples)), ("tokens", vars(source.tokens))):
                reasons = sum(got.get(name, 0) for name in (*REASONS, "truncated"))
                if got["total"] != sum(got.get(fate, 0) for fate in FATES) or got["dropped"] != reasons:
                    raise AssertionError(f"{source.source}: the {unit} do not add up: {got}")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, fit for JSON."""
        total = asdict(self.total) | {"packing_efficiency": self.packing_efficiency}
        return {"sources": [asdict(source) for source in self.sources], "total": total}

    def table(self) -> str:
        """Return an aligned table for the log: one line per source and unit, with the reasons that occur."""
        accounts = [*self.sources, self.total] if len(self.sources) > 1 else [self.total]
        counts = [(a.source, unit, vars(getattr(a, unit))) for a in accounts for unit in ("examples", "tokens")]
        names = [*vars(ExampleFates()), "trained", *vars(ExampleTokens())]
        used = [name for name in dict.fromkeys(names) if any(got.get(name) for _, _, got in counts)]
        used = ["total", *(name for name in used if name not in ("total", "trained"))]
        rows = [["source", "unit", *(name.replace("_", " ") for name in used)]]
        for source, unit, got in counts:
            got = {"train": got.get("trained"), **got}
            rows.append([source, unit, *("" if got.get(name) is None else f"{got[name]:,}" for name in used)])
        return aligned(rows)
