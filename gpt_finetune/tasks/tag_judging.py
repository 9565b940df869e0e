"""How good a tagger is, beside each word's commonest tag: figures, intervals over texts, tests, worst errors."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_finetune import metrics
from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics import sequences
from gpt_finetune.tasks.baselines import Baseline
from gpt_finetune.tasks.config import ENTITIES, FIGURES, JudgeConfig
from gpt_finetune.tasks.fold_tests import OURS
from gpt_finetune.tasks.judging import MOST_CLASSES, Outcome, lengths
from gpt_finetune.tasks.tag_patterns import PATTERN, find_by_pattern, fits
from gpt_finetune.tasks.tag_reading import Tagged

if TYPE_CHECKING:
    from gpt_finetune.tasks.tagging import PreparedTagging

WORD, MARKED = "most frequent tag per word", "most frequent tag per word, words given"
CHARACTER = "most frequent tag per character"
SHOWN = 8  # wrong words or names of one error


def run_baselines(data: PreparedTagging) -> dict[str, Baseline]:
    """Give each held-out word the tag that it has most often in training, an unknown word the commonest of all tags.

    Where words were taken apart, each part; and beside that, with more to go by than the model, the words as the rows
    mark them. Where names are fields with one value, patterns around them as well.

    Args:
        data: The rows.
    """
    apart = any(size > 1 for rows in data.texts.values() for row in rows for size in row.target.sizes)
    ways: dict[str, Words] = {CHARACTER if data.facts["characters"] else WORD: _seen}
    ways |= {MARKED: _marked} if apart else {}
    told = {name: _most_frequent(data, words) for name, words in ways.items()}
    return told | ({PATTERN: find_by_pattern(data)} if fits(data) else {})


def _most_frequent(data: PreparedTagging, words_of: Words) -> Baseline:
    begin = time.perf_counter()
    known: dict[str, Counter[tuple[str, ...]]] = {}
    every: Counter[str] = Counter()
    for row in data.texts["train"]:
        every.update(row.target.tags)
        for word, tags in words_of(row.target):
            known.setdefault(word, Counter())[tags] += 1
    best = {word: counter.most_common(1)[0][0] for word, counter in known.items()}
    commonest = every.most_common(1)[0][0]
    told = [
        tag
        for row in data.texts["validation"]
        for word, tags in words_of(row.target)
        for tag in best.get(word, (commonest,) * len(tags))
    ]
    return Baseline(data.labels.encode(told), time.perf_counter() - begin)


Words = Callable[[Tagged], Iterator[tuple[str, tuple[str, ...]]]]


def _seen(target: Tagged) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return the words that the model sees, each with its tag."""
    return ((word, (tag,)) for word, tag in zip(target.words, target.tags, strict=True))


def _marked(target: Tagged) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return the words as a row marks them, each with the tags of its parts."""
    words, tags = iter(target.words), iter(target.tags)
    for size in target.sizes:
        yield " ".join(islice(words, size)), tuple(islice(tags, size))


def measure(data: PreparedTagging, predicted: np.ndarray) -> dict[str, float]:
    """Return the figures that `FIGURES` names of the tags of all held-out words (M,)."""
    return _figures(data, _count(data, predicted).sum(0))


def judge(
    data: PreparedTagging, said: Sequence[np.ndarray], baselines: Mapping[str, Baseline], config: JudgeConfig
) -> Outcome:
    """Measure a model beside its baselines, and say how sure that is.

    Args:
        data: The rows.
        said: Of the held-out windows, as `TagTrainer.said` returns it.
        baselines: What others say, by name.
        config: The section.

    Returns:
        Figures of the baselines, and the report's section.
    """
    ours, losses = data.assemble(said)
    leading, names = FIGURES[data.problem]
    table = _table(data)
    our_counts = _count(data, ours)
    draws = sequences.resample(our_counts, config.resamples, seed=0)
    told, tests, by_text = {}, {}, {OURS: _by_text(data.problem, our_counts)}
    for name, baseline in baselines.items():
        counts = _count(data, baseline.predictions)
        by_text[name] = _by_text(data.problem, counts)
        told[name] = _figures(data, counts.sum(0)) | {"seconds": round(baseline.seconds, 3)}
        theirs = table[leading](sequences.resample(counts, config.resamples, seed=0))
        p = scores.paired_p(table[leading](draws), theirs)
        tests[name] = {**told[name], "test": f"paired bootstrap of {leading} over texts", "p": p}
    section: dict[str, Any] = {
        "name": "tagging",
        "problem_type": data.problem,
        "labels": list(data.labels.names),
        "loss_unit": "nats per word",
        "unit": "names" if data.problem == ENTITIES else "words",
        "intervals": {name: scores.interval(table[name](draws)) for name in names},
        "resamples": config.resamples,
        "baselines": tests,
        "by_label": _by_label(data, ours),
        "lengths": lengths(data) | {"windowed": data.facts["windowed_texts"]},
        "errors": _errors(data, ours, losses, config.errors),
        **data.facts,
    }
    if (count := len(data.labels.names)) <= MOST_CLASSES:
        pairs = np.bincount(data.right * count + ours, minlength=count * count)
        section["confusion"] = pairs.reshape(count, count).tolist()
    return Outcome(told, section, by_text)


def _by_text(problem: str, counts: sequences.Sums) -> np.ndarray:
    """Return part and whole of each text (N, 2): of F1 of names, or of accuracy."""
    if problem == ENTITIES:
        return np.stack((2 * counts[:, 0], counts[:, 1] + counts[:, 2]), axis=-1)
    right, _, true = np.split(counts, 3, axis=-1)
    return np.stack((right.sum(-1), true.sum(-1)), axis=-1)


def _table(data: PreparedTagging) -> sequences.Figures:
    return sequences.ENTITY_FIGURES if data.problem == ENTITIES else sequences.CLASS_FIGURES


def _figures(data: PreparedTagging, sums: np.ndarray) -> dict[str, float]:
    return {name: float(make(sums)) for name, make in _table(data).items()}


def _count(data: PreparedTagging, predicted: np.ndarray) -> np.ndarray:
    """Return what the figures are made of, text by text."""
    said, right = data.split(predicted), data.split(data.right)
    if data.problem != ENTITIES:
        return sequences.count_classes(said, right, len(data.labels.names))
    agree = [one == other for one, other in zip(said, right, strict=True)]
    return sequences.count_entities(_entities(data, said), _entities(data, right), agree)


def _entities(data: PreparedTagging, tags: Sequence[np.ndarray]) -> list[sequences.Entities]:
    return [sequences.entities_of(row) for row in _named(data, tags)]


def _named(data: PreparedTagging, tags: Sequence[np.ndarray]) -> list[list[str]]:
    names = data.labels.names
    return [[names[tag] for tag in row.tolist()] for row in tags]


def _by_label(data: PreparedTagging, ours: np.ndarray) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each type of name, or each class."""
    if data.problem == ENTITIES:
        said, right = (_named(data, data.split(tags)) for tags in (ours, data.right))
        return metrics.load("seqeval").compute(predictions=said, references=right)["by_label"]
    found = metrics.load("label_f1").compute(predictions=ours.tolist(), references=data.right.tolist())["by_label"]
    return [row | {"label": data.labels.names[row["label"]]} for row in found]


def _errors(data: PreparedTagging, ours: np.ndarray, losses: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Return the held-out texts that the model gets most wrong, by the sum of their words' losses, the worst first.

    Of each, what is right and was not told, and what was told and is not right.
    """
    said, right = data.split(ours), data.split(data.right)
    by_text = data.split(losses)
    total = [float(words.sum()) for words in by_text]
    order = [i for i in np.argsort(-np.array(total), kind="stable") if (said[i] != right[i]).any()][:count]
    found = []
    for i in order:
        row = data.texts["validation"][i]
        sides = [_marks(data, tags, row.target.words) for tags in (right[i], said[i])]
        missed, added = ([mark for mark in one if mark not in other] for one, other in (sides, sides[::-1]))
        place = int(np.where(said[i] != right[i], by_text[i], -np.inf).argmax())  # the word that costs most
        names = [data.labels.names[tags[i][place]] for tags in (said, right)]
        found.append(
            {
                "text": row.text,
                "label": _listed(missed),
                "predicted": _listed(added),
                "loss": round(total[i], 4),
                "explained": {
                    "place": place,
                    "word": row.target.words[place],
                    "predicted": names[0],
                    "right": names[1],
                },
            }
        )
    return found


def _marks(data: PreparedTagging, tags: np.ndarray, words: Sequence[str]) -> list[tuple[int, str]]:
    """Return what tags mark, in reading order: names with their type, or words with their class."""
    names, joiner = [data.labels.names[tag] for tag in tags.tolist()], data.facts["joiner"]
    if data.problem != ENTITIES:
        return [(place, f"{word}/{name}") for place, (word, name) in enumerate(zip(words, names, strict=True))]
    spans = sorted(sequences.entities_of(names), key=lambda span: span[1:])
    return [(first, f"{joiner.join(words[first : last + 1])}/{kind}") for kind, first, last in spans]


def _listed(marks: Sequence[tuple[int, str]]) -> list[str]:
    shown = [mark for _, mark in marks[:SHOWN]]
    return [*shown, "…"] if len(marks) > SHOWN else shown
