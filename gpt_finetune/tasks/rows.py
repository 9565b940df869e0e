"""Rows of a task: read, cleared of duplicates and contradictions, and split so that no text or group is divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_finetune.data.readers import Record
from gpt_finetune.data.splitting import place_of, text_key
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig
from gpt_finetune.tasks.sources import column_of, read_rows


@dataclass(eq=False)
class TaskRow:
    """One row on its way.

    Args:
        text: Its text.
        target: What is to be predicted; rows of one text whose targets differ contradict each other.
        origin: File and row.
        source: Index of its source, held-out sources first.
        key: What equal texts share.
        group: What decides the side of the split: the row's group, else its key.
        fate: train, validation or a reason of the ledger's.
    """

    text: str
    target: Any
    origin: str
    source: int
    key: bytes
    group: bytes
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
    for index, (place, source) in enumerate(named):
        for record in read_rows(source, place):
            text, target = read(record)
            key = text_key(text)
            rows.append(TaskRow(text, target, record.origin, index, key, _group(record, config, key)))
    _hold_out(rows, config)
    _drop_contradictions(rows)
    if config.deduplicate:
        _drop_duplicates(rows)
    for fate in ("train", "validation"):
        if not any(row.fate == fate for row in rows):
            _refuse_nothing(rows, fate)
    return rows


def _group(record: Record, config: TaskDataConfig, key: bytes) -> bytes:
    """Return what the group column says, else the text's key."""
    if config.group_column is None:
        return key
    value = column_of(record, config.group_column, "data.group_column")
    if not isinstance(value, str | int) or not str(value).strip():
        remedy = "Give a text or an integer, or leave data.group_column out"
        raise InputError(record.origin, value, f"the column {config.group_column!r} names no group", remedy)
    return str(value).encode()


def _hold_out(rows: Sequence[TaskRow], config: TaskDataConfig) -> None:
    """Hold out what the held-out sources have, a fold, or a share of the distinct texts; each group as a whole.

    A training row whose text or group is held out elsewhere is dropped.
    """
    if config.validation:
        out = [row for row in rows if row.source < len(config.validation)]
    else:
        chosen = _choose(rows, config)
        out = [row for row in rows if row.group in chosen]
    texts, groups = {row.key for row in out}, {row.group for row in out}
    for row in rows:
        row.fate = "held_out" if row.key in texts or row.group in groups else "train"
    for row in out:
        row.fate = "validation"


def _choose(rows: Sequence[TaskRow], config: TaskDataConfig) -> set[bytes]:
    """Return the groups of a fold, or in the order of their hash as many as have the share of the distinct texts."""
    sizes = Counter({row.key: row.group for row in rows}.values())
    places = {group: place_of(group, config.seed) for group in sizes}
    if config.folds is not None:
        return {group for group, place in places.items() if place % config.folds == config.fold}
    wanted = max(1, round(config.validation_fraction * sizes.total()))
    chosen: set[bytes] = set()
    held = 0
    for group in sorted(places, key=places.__getitem__):
        if held >= wanted:
            break
        chosen.add(group)
        held += sizes[group]
    return chosen


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
