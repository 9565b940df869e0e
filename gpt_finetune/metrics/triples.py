"""Structured answers: what a model tells in JSON, triple by triple or field by field."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np

from gpt_finetune.errors import InputError
from gpt_finetune.metrics.text import TextMetric

TRIPLE = ("head", "relation", "tail")
FIGURES = ("micro_f1", "precision", "recall", "malformed_rate")
Facts = frozenset[tuple[str, ...]]


def facts_of(text: str) -> Facts | None:
    """Return what a text tells; None where it is no JSON object, or list of them.

    An object of head, relation and tail tells one fact. Any other tells one with each field, and with each item of a
    list there. Unicode forms, case and spaces count for nothing; what is null or empty tells nothing.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    objects = found if isinstance(found, list) else [found]
    if not all(isinstance(each, dict) for each in objects):
        return None
    facts: set[tuple[str, ...]] = set()
    for each in objects:
        fields = {_plain(name): value for name, value in each.items() if value not in (None, "", [], {})}
        if set(TRIPLE) <= set(fields):
            facts.add(tuple(_plain(fields[name]) for name in TRIPLE))
            continue
        for name, value in fields.items():
            facts.update((name, _plain(item)) for item in (value if isinstance(value, list) else [value]))
    return frozenset(facts)


def triple_counts(predictions: list[str], references: list[str]) -> np.ndarray:
    """Return of each answer how many facts are right, told and wanted, whether it is malformed, and 1: float (N, 5).

    Raises:
        InputError: A reference is no JSON object, or tells nothing.
    """
    rows = []
    for said, wanted in zip(predictions, references, strict=True):
        right, told = facts_of(wanted), facts_of(said)
        if not right:
            problem = "it is no JSON object that tells something, so that answers cannot be compared with it"
            raise InputError("references", wanted, problem, "Make answers of {json:…}, or choose another metric")
        found = told or frozenset()
        rows.append((len(found & right), len(found), len(right), told is None, 1))
    return np.array(rows, float)


def triple_figures(counts: np.ndarray) -> dict[str, float]:
    """Return the figures that `FIGURES` names of summed counts (5,)."""
    right, told, wanted, malformed, answers = counts.tolist()
    return {
        "micro_f1": 2 * right / (told + wanted),
        "precision": right / told if told else 0.0,
        "recall": right / wanted,
        "malformed_rate": malformed / answers,
    }


class Triples(TextMetric):
    """Precision, recall and F1 over all facts of JSON answers, and the share of answers that are no such JSON; 0 to 1.

    See `facts_of` for what is a fact.
    """

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return triple_figures(triple_counts(predictions, references).sum(0))


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
