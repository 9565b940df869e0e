"""Metrics of generated text against one reference each, English and Chinese alike."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import datasets
import evaluate
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from gpt_finetune.metrics.words import is_unspaced, split_answer, split_words

ROUGE = ("rouge1", "rouge2", "rougeL")
_INPUTS = """
Args:
    predictions: One text each.
    references: The right answer to each, one text each.
"""


class TextMetric(evaluate.Metric):
    """A metric of texts that keeps its inputs in memory, and so leaves no files.

    Args:
        **options: As `evaluate.Metric`.
    """

    citation = ""

    def __init__(self, **options: Any) -> None:
        single = options.get("num_process", 1) == 1  # several processes meet in files
        super().__init__(**{"keep_in_memory": single, **options})

    def _info(self) -> evaluate.MetricInfo:
        texts = {name: datasets.Value("string") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=self.citation,
            inputs_description=_INPUTS,
            features=datasets.Features(texts),
        )

    def _build_data_dir(self) -> str:
        """Make a folder only where one is used."""
        return "" if self.keep_in_memory else super()._build_data_dir()


class ExactMatch(TextMetric):
    """Share of predictions equal to their reference, white space at the ends aside; 0 to 1."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"exact_match": statistics.fmean(exact_matches(predictions, references))}


class Bleu(TextMetric):
    """Corpus BLEU as sacrebleu computes it; 0 to 100.

    Tokenised by characters (sacrebleu's `zh`) where most letters of the references are Chinese or Japanese, else as
    WMT does (`13a`); `compute(tokenize=…)` chooses another.
    """

    citation = "Post 2018, A Call for Clarity in Reporting BLEU Scores, arXiv:1804.08771"

    def _compute(self, predictions: list[str], references: list[str], tokenize: str | None = None) -> dict[str, float]:
        tokenize = tokenize or bleu_tokenizer(references)
        return {"bleu": sacrebleu.corpus_bleu(list(predictions), [list(references)], tokenize=tokenize).score}


class ChrF(TextMetric):
    """F-score of character n-grams as sacrebleu computes it; 0 to 100, for any script."""

    citation = "Popović 2015, chrF: character n-gram F-score for automatic MT evaluation, W15-3049"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": sacrebleu.corpus_chrf(list(predictions), [list(references)]).score}


class Rouge(TextMetric):
    """Mean F-scores ROUGE-1, ROUGE-2 and ROUGE-L as rouge-score computes them, without stemming; 0 to 1.

    rouge-score's own tokenizer drops all but a-z and 0-9; ours keeps every script's words.
    """

    citation = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, W04-1013"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {name: statistics.fmean(scores) for name, scores in rouge_scores(predictions, references).items()}


class TokenF1(TextMetric):
    """Mean F-score of the words that prediction and reference share, as SQuAD scores answers; 0 to 1."""

    citation = "Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250, section 6.1"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"token_f1": statistics.fmean(token_f1_scores(predictions, references))}


TEXT_METRICS: dict[str, type[evaluate.Metric]] = {
    "exact_match": ExactMatch,
    "bleu": Bleu,
    "chrf": ChrF,
    "rouge": Rouge,
    "token_f1": TokenF1,
}


def exact_matches(predictions: list[str], references: list[str]) -> list[float]:
    """Return 1 for each prediction that equals its reference, white space at the ends aside, else 0."""
    return [float(p.strip() == r.strip()) for p, r in _pairs(predictions, references)]


def rouge_scores(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """Return the F-scores of each prediction, by the names in `ROUGE`."""
    scorer = RougeScorer(ROUGE, tokenizer=_Words())
    scores = [scorer.score(reference, text) for text, reference in _pairs(predictions, references)]
    return {name: [score[name].fmeasure for score in scores] for name in ROUGE}


def token_f1_scores(predictions: list[str], references: list[str]) -> list[float]:
    """Return the F-score of the words that each prediction shares with its reference."""
    return [_f1(split_answer(p), split_answer(r)) for p, r in _pairs(predictions, references)]


def bleu_tokenizer(references: list[str]) -> str:
    """Return the name of sacrebleu's tokenizer for texts like these."""
    return "zh" if is_unspaced(references) else "13a"


class _Words:
    """Our words under the name that rouge-score calls."""

    def tokenize(self, text: str) -> list[str]:
        return split_words(text)


def _pairs(predictions: list[str], references: list[str]) -> list[tuple[str, str]]:
    return list(zip(predictions, references, strict=True))


def _f1(predicted: list[str], right: list[str]) -> float:
    """Return the F-score of two bags of words; of two empty ones it is 1."""
    if not predicted or not right:
        return float(predicted == right)
    return 2 * sum((Counter(predicted) & Counter(right)).values()) / (len(predicted) + len(right))
