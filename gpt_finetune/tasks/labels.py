"""Labels of texts: one of several, several at once, or a number; as rows have them and as a model learns them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.tasks.config import MULTI, REGRESSION, SINGLE

_KINDS = {bool: "a boolean", int: "an integer", str: "a text", float: "a fraction", list: "a list"}
_REPAIR = "Repair or remove the row"


@dataclass(frozen=True)
class Labels:
    """What there is to be told apart.

    Args:
        problem: transformers' `problem_type`.
        names: Of the labels, sorted, integers by value; of a regression, what it predicts.
    """

    problem: str
    names: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """Return what a model's configuration says of them."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
            "problem_type": self.problem,
        }

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        """Return labels as the model's loss takes them (N texts, L labels).

        Args:
            values: From `LabelReader`.

        Returns:
            int64 (N,); for several labels float32 (N, L) of 0 and 1; for regression float32 (N, 1).
        """
        if self.problem == REGRESSION:
            return np.array(values, np.float32).reshape(-1, 1)
        number = {name: i for i, name in enumerate(self.names)}
        if self.problem == SINGLE:
            return np.array([number[str(value)] for value in values], np.int64)
        several = np.zeros((len(values), len(self.names)), np.float32)
        for i, value in enumerate(values):
            several[i, [number[str(one)] for one in value]] = 1
        return several

    def named(self, row: np.ndarray) -> Any:
        """Return one encoded label as people write it: a name, a list of names, or a number."""
        if self.problem == REGRESSION:
            return float(row.item())
        if self.problem == SINGLE:
            return self.names[int(row)]
        return [name for name, has in zip(self.names, row, strict=True) if has]

    def require(self, value: Any, origin: str) -> None:
        """Refuse a label that training rows do not have.

        Raises:
            InputError: It is such a one.
        """
        for name in map(str, value if isinstance(value, tuple) else (value,)):
            if self.problem != REGRESSION and name not in self.names:
                problem = "no training row has this label, so that it cannot be predicted"
                raise InputError(origin, name, problem, did_you_mean(name, self.names))


class LabelReader:
    """Reads labels row by row; all must be of one kind.

    Args:
        problem_type: As the user set it; auto is decided by the first row.
        column: Name of the label column.
    """

    def __init__(self, problem_type: str, column: str) -> None:
        self.problem_type, self.column = problem_type, column
        self.first: tuple[str, str] | None = None  # kind of the first label, and where it stands

    def __call__(self, value: object, origin: str) -> Any:
        """Return a label that can be compared: a text, an integer, a boolean, a sorted tuple of them, or a number.

        Raises:
            InputError: It is no label, or of another kind than those before.
        """
        if self.problem_type == "auto":
            self.problem_type = MULTI if isinstance(value, list) else SINGLE
        if self.problem_type == REGRESSION:
            return self._number(value, origin)
        if self.problem_type == SINGLE:
            return self._one(value, origin)
        if not isinstance(value, list):
            remedy = "Give a list in each row, as jsonl and parquet can hold it"
            raise InputError(origin, value, "the label is no list, and several labels make one", remedy)
        return tuple(sorted({self._one(one, origin) for one in value}))

    def fit(self, values: Sequence[Any]) -> Labels:
        """Return what the labels of the training rows are.

        Raises:
            InputError: They are all the same.
        """
        if self.problem_type == REGRESSION:
            return Labels(REGRESSION, (self.column,))
        flat = {one for value in values for one in (value if isinstance(value, tuple) else (value,))}
        names = tuple(map(str, sorted(flat)))
        if len(names) < (2 if self.problem_type == SINGLE else 1) or len(set(values)) < 2:
            problem = "all training rows have one label, so that there is nothing to tell apart"
            raise InputError("data.label_column", self.column, problem, f"Add rows with others than {names}")
        return Labels(self.problem_type, names)

    def _one(self, value: object, origin: str) -> Any:
        kind = _KINDS.get(type(value))
        if kind in (None, "a list") or (isinstance(value, str) and not value.strip()):
            said = "empty" if isinstance(value, str) else f"{type(value).__name__}, which names no class"
            raise InputError(origin, value, f"the label is {said}", _REPAIR)
        if isinstance(value, float):
            remedy = "Set data.problem_type=regression to predict numbers, or write classes as texts or integers"
            raise InputError(origin, value, "the label is a fraction, which names no class", remedy)
        assert kind is not None
        self.first = self.first or (kind, origin)
        if kind != self.first[0]:
            problem = f"the label is {kind}, and that of {self.first[1]} is {self.first[0]}"
            raise InputError(origin, value, problem, "Write all labels in one way")
        return value.strip() if isinstance(value, str) else value

    def _number(self, value: object, origin: str) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(origin, value, "the label is no number, and data.problem_type is regression", _REPAIR)
        if abs(number) > (largest := float(np.finfo(np.float32).max)):
            problem = f"the label is beyond what float32 holds, {largest:.3g}"
            raise InputError(origin, value, problem, "Write all labels in a larger unit")
        return number


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, L) of logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each label by itself (N, L)."""
    return np.exp(-np.logaddexp(0, -logits))
