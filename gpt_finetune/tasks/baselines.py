"""What needs no neural network: the commonest label, and a linear model of n-grams. On the same split, timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_finetune.metrics.words import is_unspaced
from gpt_finetune.tasks.config import MULTI, REGRESSION, SINGLE

# Inverse strength of the linear models' L2 penalty: rows of TF-IDF have length 1, for which scikit-learn's 1 is strong.
WEAK_PENALTY = 10.0


@dataclass(frozen=True)
class Baseline:
    """What a baseline says of the held-out texts.

    Args:
        predictions: As labels are encoded: int64 (N,), 0 and 1 (N, L), or numbers (N, 1).
        seconds: For training and predicting.
    """

    predictions: np.ndarray
    seconds: float


def run_baselines(problem: str, train: Sequence[str], labels: np.ndarray, test: Sequence[str]) -> dict[str, Baseline]:
    """Train each baseline and let it predict.

    Args:
        problem: transformers' `problem_type`.
        train: Training texts.
        labels: Theirs, encoded.
        test: Held-out texts.

    Returns:
        What each says, by name.
    """
    found = {}
    for name, predict in ((NAMES[problem][0], _constant), (NAMES[problem][1], _linear)):
        begin = time.perf_counter()
        predictions = predict(problem, train, labels, test)
        found[name] = Baseline(predictions, time.perf_counter() - begin)
    return found


# problem -> (what is predicted without looking, the linear model)
NAMES = {
    SINGLE: ("majority", "TF-IDF + logistic regression"),
    MULTI: ("majority", "TF-IDF + logistic regression"),
    REGRESSION: ("mean", "TF-IDF + ridge regression"),
}


def _constant(problem: str, train: Sequence[str], labels: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """Predict the commonest label; of several, those that most texts have; of numbers, the mean."""
    if problem == SINGLE:
        return np.full(len(test), np.bincount(labels).argmax())
    mean = labels.mean(0)
    return np.tile(mean if problem == REGRESSION else mean > 0.5, (len(test), 1)).astype(labels.dtype)


def _linear(problem: str, train: Sequence[str], labels: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """Predict from words and pairs of them, or where words are not parted by spaces, from 1 to 3 characters."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    models: dict[str, Callable[[], Any]] = {
        SINGLE: lambda: LogisticRegression(C=WEAK_PENALTY, max_iter=1000),
        MULTI: lambda: OneVsRestClassifier(LogisticRegression(C=WEAK_PENALTY, max_iter=1000)),
        REGRESSION: lambda: Ridge(alpha=1 / WEAK_PENALTY),
    }
    grams: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": r"(?u)\w+"}
    if is_unspaced(list(train)):
        grams = {"analyzer": "char", "ngram_range": (1, 3)}
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, **grams), models[problem]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        try:
            pipeline.fit(train, labels)
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            return _constant(problem, train, labels, test)  # texts of signs only have no words
    return np.asarray(pipeline.predict(test)).reshape(-1, *labels.shape[1:]).astype(labels.dtype)
