"""Metrics: `evaluate`'s API over sacrebleu, rouge-score, scikit-learn and seqeval, all offline. Start at `load`."""

from __future__ import annotations

from typing import Any

from evaluate import Metric

from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.metrics.answers import ANSWER_METRICS
from gpt_finetune.metrics.labels import LABEL_METRICS
from gpt_finetune.metrics.sequences import SEQUENCE_METRICS
from gpt_finetune.metrics.text import TEXT_METRICS
from gpt_finetune.metrics.triples import Triples

__all__ = ["METRICS", "load", "text_metrics"]

# name -> class; each instance computes one or more figures
METRICS: dict[str, type[Metric]] = {
    **TEXT_METRICS,
    **LABEL_METRICS,
    **SEQUENCE_METRICS,
    **ANSWER_METRICS,
    "triples": Triples,
}


def load(name: str, **options: Any) -> Metric:
    """Return a metric, as `evaluate.load` does, without looking for it on the Hub.

    Args:
        name: A key of `METRICS`.
        **options: Passed to `evaluate.Metric`.

    Raises:
        InputError: There is no such metric.
    """
    if name not in METRICS:
        raise InputError("metric", name, "there is no such metric", did_you_mean(name, METRICS))
    return METRICS[name](**options)


def text_metrics(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Compare texts with the one right answer of each, in every way that `TEXT_METRICS` lists.

    Args:
        predictions: What a model wrote; an empty text counts as a wrong answer.
        references: The right answers, in the same order.

    Returns:
        exact_match, rouge1, rouge2, rougeL and token_f1 from 0 to 1; bleu and chrf from 0 to 100.

    Raises:
        InputError: There is nothing to compare, or one list is longer than the other.
    """
    if len(predictions) != len(references):
        problem = f"there are {len(references)} references"
        raise InputError("predictions", f"{len(predictions)} texts", problem, "Give one reference a prediction")
    if not predictions:
        raise InputError("predictions", predictions, "there is nothing to compare", "Give one text or more")
    figures: dict[str, float] = {}
    for name in TEXT_METRICS:
        figures |= load(name).compute(predictions=predictions, references=references)
    return figures
