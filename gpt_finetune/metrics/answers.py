"""Metrics of answers that a text holds, or does not hold, against one or more right ones each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from gpt_finetune.metrics.text import TextMetric
from gpt_finetune.metrics.words import split_answer

ANSWER_FIGURES = ("exact_match", "token_f1", "no_answer_accuracy")


class Answers(TextMetric):
    """Exact match, F1 of words, and how often it is rightly told whether there is an answer; 0 to 1.

    As SQuAD 2.0 scores: case, punctuation and articles count for nothing, the best of several right answers counts, and
    where there is none, only the empty answer is right. In scripts without spaces, characters are words.
    """

    citation = "Rajpurkar et al. 2018, Know What You Don't Know, arXiv:1806.03822"

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=self.citation,
            inputs_description="predictions: a text each, empty for no answer; references: lists of right ones",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return answer_figures(score_answers(predictions, references))


ANSWER_METRICS: dict[str, type[evaluate.Metric]] = {"answers": Answers}


def answer_figures(scores: np.ndarray) -> dict[str, float]:
    """Return the figures of answers from what `score_answers` says of each."""
    return dict(zip(ANSWER_FIGURES, scores.mean(0).tolist(), strict=True))


def score_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return what `ANSWER_FIGURES` names, answer by answer (N, 3).

    Args:
        predictions: One text each, empty for no answer.
        references: The right ones of each, none for no answer.
    """
    rows = [_score(said, list(right)) for said, right in zip(predictions, references, strict=True)]
    return np.array(rows, np.float64).reshape(-1, len(ANSWER_FIGURES))


def _score(said: str, right: list[str]) -> tuple[float, float, float]:
    told = float(bool(said) == bool(right))
    if not said or not right:
        return told, told, told
    words = _words(said)
    pairs = [(words, _words(one)) for one in right]
    return float(any(ours == theirs for ours, theirs in pairs)), max(_f1(*pair) for pair in pairs), told


def _words(text: str) -> list[str]:
    """Return the words that are compared; of a text with none, such as an article or a sign, the text."""
    return split_answer(text) or [text.strip()]


def _f1(ours: list[str], theirs: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def describe(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the figures of the questions that have an answer, and of those that have none, with their number."""
    scores = score_answers(predictions, references)
    has = np.array([bool(right) for right in references], bool)
    return {
        name: {**answer_figures(scores[side]), "questions": int(side.sum())}
        for name, side in (("with an answer", has), ("without an answer", ~has))
        if side.any()
    }
