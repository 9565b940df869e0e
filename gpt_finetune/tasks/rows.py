"""Rows of a task: read, cleared of duplicates and contradictions, and split so that no text is on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig
from gpt_finetune.tasks.sources import place_of, read_rows, text_key


@dataclass(eq=False)
class TaskRow:
    """One row on its way.

    Args:
        text: Its text.
        target: What is to be predicted; rows of one text whose targets differ contradict each other.
        origin: File and row.
        source: Index of its source, held-out sources first.
        key: What equal texts share.
        fate: train, validation or a reason of the ledger's.
    """

    text: str
    target: Any
    origin: str
    source: int
    key: bytes
    fate: str = "train"


def read_all(config: TaskDataConfig, read: Callable[[Record], tuple[str, Any]]) -> list[TaskRow]:
    """Read every row, held-out sources first, and decide what becomes of each.

    Args:
        config: What to read, and how to split it.
        read: Makes text and target of a record.

    Raises:
        InputError: A row cannot be used, or no text is left on one side.
    """
    rows = []
    named = [(f"data.{key}[{i}]", s) for key in ("validation", "sources") for i, s in enumerate(getattr(config, key))]
    for index, (key, source) in enumerate(named):
        for record in read_rows(source, key):
            text, target = read(record)
            rows.append(TaskRow(text, target, record.origin, index, text_key(text)))
    _hold_out(rows, config)
    _drop_contradictions(rows)
    if config.deduplicate:
        _drop_duplicates(rows)
    for fate in ("train", "validation"):
        if not any(row.fate == fate for row in rows):
            _refuse_nothing(rows, fate)
    return rows


def _hold_out(rows: Sequence[TaskRow], config: TaskDataConfig) -> None:
    """Hold out what the held-out sources have, a fold, or a share of the distinct texts; each text as a whole."""
    if config.validation:
        given = {row.key for row in rows if row.source < len(config.validation)}
        for row in rows:
            is_given = row.source < len(config.validation)
            row.fate = "validation" if is_given else "held_out" if row.key in given else "train"
        return
    places = {row.key: place_of(row.key, config.seed) for row in rows}
    if config.folds is not None:
        chosen = {key for key, place in places.items() if place % config.folds == config.fold}
    else:
        ranked = sorted(places, key=places.__getitem__)
        chosen = set(ranked[: max(1, round(config.validation_fraction * len(ranked)))])
    for row in rows:
        row.fate = "validation" if row.key in chosen else "train"


def _drop_contradictions(rows: Sequence[TaskRow]) -> None:
    """Drop all rows of a text that bears different targets; what is held out already counts as that."""
    found: dict[bytes, set[Any]] = {}
    kept = [row for row in rows if row.fate != "held_out"]
    for row in kept:
        found.setdefault(row.key, set()).add(row.target)
    for row in kept:
        row.fate = "contradictory" if len(found[row.key]) > 1 else row.fate


def _drop_duplicates(rows: Sequence[TaskRow]) -> None:
    known: set[bytes] = set()
    for row in rows:
        if row.fate in ("train", "validation"):
            row.fate = "duplicate" if row.key in known else row.fate
            known.add(row.key)


def _refuse_nothing(rows: Sequence[TaskRow], fate: str) -> None:
    """Say why one side of the split is empty."""
    fates = [row.fate for row in rows]
    counted = ", ".join(f"{fates.count(name)} {name.replace('_', ' ')}" for name in dict.fromkeys(fates))
    side = "train on" if fate == "train" else "hold out"
    remedy = "Add rows that differ, or set data.validation_fraction otherwise"
    raise InputError("data.sources", f"{len(rows)} rows", f"no text is left to {side}: {counted}", remedy)
