"""Figures of texts that are drawn a thousand times: each text is counted once, and the draws only add counts up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from gpt_finetune.metrics import text, triples

TEXT = ("exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "token_f1")


@dataclass(frozen=True)
class Counted:
    """What a figure is made of.

    Args:
        counts: Of each text, what adds up over texts: float (N, K).
        figures: Makes figures of the sums (K,).
    """

    counts: np.ndarray
    figures: Callable[[np.ndarray], dict[str, float]]

    @property
    def whole(self) -> dict[str, float]:
        """The figures of all texts."""
        return self.figures(self.counts.sum(0))

    def each(self, name: str) -> np.ndarray:
        """Return a figure of every text by itself (N,)."""
        return np.array([self.figures(row)[name] for row in self.counts])

    def resampled(self, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return the figures of texts drawn with replacement, so many times (Efron 1979).

        Args:
            samples: How many times to draw.
            seed: Of the draws: equal seeds draw equal texts, so that two systems can be compared pair by pair.
        """
        size, generator = len(self.counts), np.random.default_rng(seed)
        draws = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(samples))
        rows = [self.figures(draw @ self.counts) for draw in draws]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def count_texts(predictions: list[str], references: list[str]) -> dict[str, Counted]:
    """Return what `TEXT` names is made of; the figures are those of `text_metrics`.

    Args:
        predictions: One text each.
        references: The right answer to each.
    """
    means = {
        "exact_match": text.exact_matches(predictions, references),
        **text.rouge_scores(predictions, references),
        "token_f1": text.token_f1_scores(predictions, references),
    }
    scores = np.column_stack([*means.values(), np.ones(len(references))])
    corpus: dict[str, Metric] = {"bleu": BLEU(tokenize=text.bleu_tokenizer(references)), "chrf": CHRF()}
    found = {name: _of_corpus(metric, name, predictions, references) for name, metric in corpus.items()}
    return {
        "means": Counted(scores, lambda sums: dict(zip(means, (sums[:-1] / sums[-1]).tolist(), strict=True))),
        **found,
    }


def count_triples(predictions: list[str], references: list[str]) -> dict[str, Counted]:
    """Return what the figures of `Triples` are made of.

    Raises:
        InputError: A reference is no JSON object.
    """
    return {"triples": Counted(triples.triple_counts(predictions, references), triples.triple_figures)}


def _of_corpus(metric: Metric, name: str, predictions: list[str], references: list[str]) -> Counted:
    """Count n-grams as sacrebleu does for its own bootstrap (Koehn 2004, W04-3250)."""
    counts = np.array(metric._extract_corpus_statistics(predictions, [references]), float)
    return Counted(counts, lambda sums: {name: float(metric._compute_score_from_stats(sums.tolist()).score)})
