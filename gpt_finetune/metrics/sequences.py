"""Metrics of tags, one a word: names in a text by seqeval's rules; and sums over texts, which are bootstrapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from gpt_finetune.metrics.labels import LabelMetric

Entities = set[tuple[str, int, int]]  # type, first word, last word


def entities_of(tags: Sequence[str]) -> Entities:
    """Return the names that tags mark, as seqeval's default mode (conlleval's) reads them.

    A name also begins with `I-X` where no `X` goes before; of one type, the next begins with `B-X`.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(list(tags)))


class SequenceEval(LabelMetric):
    """Precision, recall and F1 of names in texts, right if type and both ends are; all types together (micro). 0 to 1.

    And those of each type, and the share of words whose tag is the right one.
    """

    citation = "Nakayama 2018, seqeval; Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050"
    inputs: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Sequence(datasets.Value("string")),
        "references": datasets.Sequence(datasets.Value("string")),
    }

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        from seqeval.metrics import accuracy_score, classification_report

        told = classification_report(references, predictions, output_dict=True, zero_division=0)
        names = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "support"}
        rows = {
            label: {name: float(row[key]) for key, name in names.items()}
            for label, row in told.items()
            if not label.endswith(" avg")
        }
        return {
            **{f"entity_{name}": float(told["micro avg"][key]) for key, name in list(names.items())[:3]},
            "accuracy": float(accuracy_score(references, predictions)),
            "by_label": [{"label": label, **row} for label, row in rows.items()],
        }


SEQUENCE_METRICS: dict[str, type[evaluate.Metric]] = {"seqeval": SequenceEval}

# ---------------------------------------------------------------------------- sums over texts, and figures made of them

Sums = np.ndarray  # (..., C): counts of one text, or their sum over some
Figures = Mapping[str, Callable[[Sums], np.ndarray]]


def count_entities(predicted: Sequence[Entities], right: Sequence[Entities], agree: Sequence[np.ndarray]) -> Sums:
    """Return what `ENTITY_FIGURES` are made of: (N, 5).

    Args:
        predicted: Names that are said of each text.
        right: Those that it has.
        agree: Whether each word's tag is the right one, bool (W,) a text.
    """
    rows = [
        (len(said & true), len(said), len(true), same.sum(), len(same))
        for said, true, same in zip(predicted, right, agree, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 5)


def count_classes(predicted: Sequence[np.ndarray], right: Sequence[np.ndarray], classes: int) -> Sums:
    """Return what `CLASS_FIGURES` are made of, for each class: right ones, said ones, true ones (N, 3 L)."""
    sums = np.zeros((len(right), 3, classes))
    for row, said, true in zip(sums, predicted, right, strict=True):
        np.add.at(row[0], true[said == true], 1)
        np.add.at(row[1], said, 1)
        np.add.at(row[2], true, 1)
    return sums.reshape(len(right), -1)


def _share(some: np.ndarray, of: np.ndarray) -> np.ndarray:
    return some / np.maximum(of, 1)


def _macro_f1(sums: Sums) -> np.ndarray:
    both, said, true = np.split(sums, 3, axis=-1)
    occurs = said + true > 0
    return (_share(2 * both, said + true) * occurs).sum(-1) / np.maximum(occurs.sum(-1), 1)


ENTITY_FIGURES: Figures = {
    "entity_f1": lambda sums: _share(2 * sums[..., 0], sums[..., 1] + sums[..., 2]),
    "entity_precision": lambda sums: _share(sums[..., 0], sums[..., 1]),
    "entity_recall": lambda sums: _share(sums[..., 0], sums[..., 2]),
    "accuracy": lambda sums: _share(sums[..., 3], sums[..., 4]),
}
CLASS_FIGURES: Figures = {
    "accuracy": lambda sums: _share(*(part.sum(-1) for part in np.split(sums, 3, axis=-1)[::2])),
    "macro_f1": _macro_f1,
}


def resample(counts: Sums, samples: int, seed: int) -> Sums:
    """Return the sums over texts drawn with replacement, so many times (samples, C) (Efron 1979).

    Args:
        counts: Of each text (N, C).
        samples: How many times to draw.
        seed: Of the draws: equal seeds draw equal texts, so that two systems can be compared pair by pair.
    """
    generator = np.random.default_rng(seed)
    size = len(counts)
    draws = [np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(samples)]
    return np.stack(draws).astype(np.float64) @ counts
