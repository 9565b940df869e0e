"""Metrics of labels: one or several of a text, or a number; scikit-learn's figures, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from gpt_finetune.metrics.text import TextMetric

BINS = 10  # of equal width, as in Guo et al. 2017
Scorer = Callable[[np.ndarray, np.ndarray], float]


class LabelMetric(TextMetric):
    """A metric of labels, given as numbers.

    Args:
        **options: As `evaluate.Metric`.
    """

    inputs: ClassVar[dict[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=self.citation,
            inputs_description="predictions and references: in the same order",
            features=datasets.Features(self.inputs),
        )


class Accuracy(LabelMetric):
    """Share of texts whose label is the right one; 0 to 1."""

    inputs: ClassVar[dict[str, Any]] = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(references, predictions))}


class LabelF1(LabelMetric):
    """F1 of each label, and their mean (macro); a label that neither occurs nor is predicted does not count. 0 to 1."""

    inputs = Accuracy.inputs

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        from sklearn.metrics import precision_recall_fscore_support

        labels = sorted({*references, *predictions})
        found = precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
        rows = zip(labels, *(column.tolist() for column in found), strict=True)
        names = ("label", "precision", "recall", "f1", "support")
        return {"macro_f1": float(np.mean(found[2])), "by_label": [dict(zip(names, row, strict=True)) for row in rows]}


class SeveralLabels(LabelMetric):
    """F1 over several labels a text, given as 0 and 1: over all decisions (micro), the mean of the labels (macro).

    And how many texts have exactly the right labels. 0 to 1.
    """

    inputs: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Sequence(datasets.Value("int64")),
        "references": datasets.Sequence(datasets.Value("int64")),
    }

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        from sklearn.metrics import precision_recall_fscore_support as scores

        right, found = np.asarray(references), np.asarray(predictions)
        each = scores(right, found, average=None, zero_division=0)
        names = ("label", "precision", "recall", "f1", "support")
        rows = zip(range(right.shape[1]), *(column.tolist() for column in each), strict=True)
        return {
            "micro_f1": float(scores(right, found, average="micro", zero_division=0)[2]),
            "macro_f1": float(np.mean(each[2])),
            "subset_accuracy": float((right == found).all(1).mean()),
            "by_label": [dict(zip(names, row, strict=True)) for row in rows],
        }


class Calibration(LabelMetric):
    """Expected calibration error: how far the likeliest label's probability is from how often it is right; 0 to 1.

    Predictions are probabilities of all labels; the weighted mean over ten bins of equal width.
    """

    citation = "Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599, section 2"
    inputs: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Sequence(datasets.Value("float64")),
        "references": datasets.Value("int64"),
    }

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        probabilities = np.asarray(predictions)
        sure = probabilities.max(1)
        right = probabilities.argmax(1) == np.asarray(references)
        places = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        bins = []
        for place in np.unique(places):
            mine = places == place
            means = {"sure": float(sure[mine].mean()), "right": float(right[mine].mean())}
            bins.append({"count": int(mine.sum()), **means})
        error = sum(b["count"] * abs(b["sure"] - b["right"]) for b in bins) / len(sure)
        return {"ece": float(error), "bins": bins}


class Regression(LabelMetric):
    """Mean squared error, and Pearson's correlation of numbers; the latter is 0 where one side never varies."""

    inputs: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Value("float64"),
        "references": datasets.Value("float64"),
    }

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import mean_squared_error

        found, right = np.asarray(predictions), np.asarray(references)
        varies = found.std() > 0 and right.std() > 0
        return {
            "mse": float(mean_squared_error(right, found)),
            "pearson": float(np.corrcoef(found, right)[0, 1]) if varies else 0.0,
        }


LABEL_METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "label_f1": LabelF1,
    "several_labels": SeveralLabels,
    "calibration": Calibration,
    "regression": Regression,
}

# ---------------------------------------------------------------------------------------------------- how sure it is


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return what `LabelF1` calls macro_f1 (N,), (N,), without its price: a bootstrap asks for it many times."""
    size = int(max(predictions.max(), references.max())) + 1
    right = np.bincount(references[predictions == references], minlength=size)
    total = np.bincount(predictions, minlength=size) + np.bincount(references, minlength=size)
    occurs = total > 0
    return float(np.mean(2 * right[occurs] / total[occurs]))


def bootstrap(score: Scorer, predictions: np.ndarray, references: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return a figure of data drawn with replacement, so many times (Efron 1979).

    Args:
        score: The figure of predictions and references.
        predictions: One row a text.
        references: The same.
        samples: How many times to draw.
        seed: Of the draws: equal seeds draw equal texts, so that two systems can be compared pair by pair.
    """
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(references), size=len(references)) for _ in range(samples))
    return np.array([score(predictions[draw], references[draw]) for draw in draws])


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the range in the middle that holds so large a share of bootstrapped figures (percentile method)."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def paired_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p of a difference between two systems, from figures bootstrapped on equal draws."""
    smaller = min(int((ours <= theirs).sum()), int((ours >= theirs).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(ours) + 1))


def mcnemar_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the exact two-sided p of McNemar's test (1947): do two systems get equally many texts right?

    Args:
        ours: Whether we get each text right, bool (N,).
        theirs: Whether they do.
    """
    from scipy.stats import binomtest

    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    several = only_ours + only_theirs
    return float(binomtest(only_ours, several, 0.5).pvalue) if several else 1.0
