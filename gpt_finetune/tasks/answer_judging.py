"""How good answers are, beside those that need no model: figures, intervals, tests, worst errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics import sequences
from gpt_finetune.metrics.answers import ANSWER_FIGURES, answer_figures, describe, score_answers
from gpt_finetune.metrics.words import WORD, is_unspaced
from gpt_finetune.tasks.answer_reading import Asked
from gpt_finetune.tasks.answering import PreparedAnswers
from gpt_finetune.tasks.config import ANSWERS, FIGURES, JudgeConfig
from gpt_finetune.tasks.fold_tests import OURS
from gpt_finetune.tasks.judging import Outcome, lengths
from gpt_finetune.tasks.spans import Said

EXCERPT = 240  # characters of a context that the report shows
RIGHT = 4  # right answers that it shows
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|[。！？]|\n|$)", re.DOTALL)
# Words that end a noun phrase where spaces part words; scikit-learn's list has those of English.
_CHINESE = "的之於以爲为與与而也其所是在有曾今及至人事見见"


@dataclass(frozen=True)
class AnswerBaseline:
    """What a baseline answers to the held-out questions.

    Args:
        answers: One text each.
        seconds: For all of them.
    """

    answers: list[str]
    seconds: float


def run_baselines(data: PreparedAnswers) -> dict[str, AnswerBaseline]:
    """Answer each held-out question without looking at it."""
    known: dict[str, Callable[[str], str]] = {
        "first sentence": first_sentence,
        "longest noun phrase": longest_phrase,
        "no answer": lambda context: "",
    }
    found = {}
    for name, answer in known.items():
        begin = time.perf_counter()
        answers = [answer(asked.context) for asked in data.asked]
        found[name] = AnswerBaseline(answers, time.perf_counter() - begin)
    if all(data.references):
        del found["no answer"]
    return found


def first_sentence(context: str) -> str:
    """Return a text up to its first end of a sentence or line."""
    match = _SENTENCE.match(context.strip())
    return match[0].strip() if match else ""


def longest_phrase(context: str) -> str:
    """Return the longest run of words without punctuation and without function words between them.

    Without a parser that is as near as it gets to the longest noun phrase. In scripts without spaces, words are
    characters, and some of them count as function words.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    unspaced = is_unspaced([context])
    runs: list[list[re.Match[str]]] = [[]]
    for match in WORD.finditer(context):
        between = context[runs[-1][-1].end() : match.start()] if runs[-1] else ""
        if between.strip():
            runs.append([])
        if match[0].lower() in ENGLISH_STOP_WORDS or (unspaced and match[0] in _CHINESE):
            runs.append([])
        else:
            runs[-1].append(match)
    best = max(runs, key=len)
    return context[best[0].start() : best[-1].end()] if best else ""


def judge(
    data: PreparedAnswers, said: Sequence[np.ndarray], baselines: Mapping[str, AnswerBaseline], config: JudgeConfig
) -> Outcome:
    """Measure a model beside its baselines, and say how sure that is.

    Args:
        data: The rows.
        said: Of the held-out windows, as `AnswerTrainer.said` returns it.
        baselines: What others answer, by name.
        config: The section.

    Returns:
        Figures of the baselines, and the report's section. Answers that it shows bear the number of their `row`, which
        `answer_attribution.explain_answers` takes away.
    """
    ours = data.assemble(said)
    texts = [each.answer for each in ours]
    leading = FIGURES[ANSWERS][0]
    table = score_answers(texts, data.references)
    draws = _draws(table, config.resamples)
    told: dict[str, dict[str, float]] = {}
    tests: dict[str, dict[str, Any]] = {}
    by_text = {OURS: _by_question(table)}
    for name, baseline in baselines.items():
        others = score_answers(baseline.answers, data.references)
        told[name] = answer_figures(others) | {"seconds": round(baseline.seconds, 3)}
        p = scores.paired_p(draws[leading], _draws(others, config.resamples)[leading])
        by_text[name] = _by_question(others)
        tests[name] = {**told[name], "test": f"paired bootstrap of {leading}", "p": p}
    order = np.argsort([-each.loss for each in ours], kind="stable")
    worst = [i for i in order if table[i, 0] < 1][: config.errors]
    right = [i for i in order[::-1] if table[i, 0] == 1 and texts[i]][: min(RIGHT, config.errors)]
    section: dict[str, Any] = {
        "name": "question answering",
        "problem_type": ANSWERS,
        "labels": ["start", "end"],  # what the head scores, as an adapter's loader asks
        "leading": leading,
        "loss_unit": "nats per position",
        "unit": "questions",
        "intervals": {name: scores.interval(values) for name, values in draws.items()},
        "resamples": config.resamples,
        "baselines": tests,
        "sides": describe(texts, data.references),
        "lengths": lengths(data) | {"windowed": data.facts["windowed_texts"]},
        "errors": [_shown(data, i, ours[i]) for i in map(int, worst)],
        "examples": [_shown(data, i, ours[i]) for i in map(int, right)],
        **data.facts,
    }
    return Outcome(told, section, by_text)


def _by_question(table: np.ndarray) -> np.ndarray:
    """Return the leading figure of each question, and that it is of one question (N, 2)."""
    leading = table[:, ANSWER_FIGURES.index(FIGURES[ANSWERS][0])]
    return np.stack([leading, np.ones(len(table))], axis=1)


def _draws(table: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """Return each figure of questions drawn with replacement, on equal draws for equal seeds."""
    means = sequences.resample(table, samples, seed=0) / len(table)
    return dict(zip(ANSWER_FIGURES, means.T, strict=True))


def excerpt_of(asked: Asked) -> tuple[str, int, int, int]:
    """Return what the report shows of a question: it, and a part of its context around the right answer.

    Returns:
        The text; where the part begins and ends in the context; and how much further on in the text it stands.
    """
    place = asked.starts[0] if asked.starts else 0
    begin = max(0, min(place - EXCERPT // 2, len(asked.context) - EXCERPT))
    end = min(begin + EXCERPT, len(asked.context))
    before, after = "…" * (begin > 0), "…" * (end < len(asked.context))
    shift = len(asked.question) + 1 + len(before) - begin
    return f"{asked.question}\n{before}{asked.context[begin:end]}{after}", begin, end, shift


def _shown(data: PreparedAnswers, number: int, said: Said) -> dict[str, Any]:
    asked = data.asked[number]
    return {
        "row": number,
        "text": excerpt_of(asked)[0],
        "label": " / ".join(dict.fromkeys(asked.answers)) or "no answer",
        "predicted": said.answer or "no answer",
        "loss": round(said.loss, 4),
    }
