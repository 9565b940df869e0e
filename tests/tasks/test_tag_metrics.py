"""Figures of tags: those of seqeval and scikit-learn, by themselves and as sums over texts."""

from __future__ import annotations

import numpy as np
import pytest

from gpt_finetune import metrics
from gpt_finetune.metrics import sequences

NAMES = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


@pytest.fixture
def tags():
    """Return predicted and right tags of thirty texts."""
    generator = np.random.default_rng(0)
    right = [generator.integers(5, size=size) for size in generator.integers(1, 12, size=30)]
    said = [np.where(generator.random(len(row)) < 0.7, row, generator.integers(5, size=len(row))) for row in right]
    return said, right


def named(rows):
    return [[NAMES[tag] for tag in row] for row in rows]


def test_names_begin_and_end_as_seqeval_says():
    found = sequences.entities_of(["I-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER"])
    assert found == {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4), ("PER", 5, 5)}


def test_sums_over_texts_give_seqevals_figures(tags):
    from seqeval.metrics import f1_score, precision_score, recall_score

    said, right = tags
    told = metrics.load("seqeval").compute(predictions=named(said), references=named(right))
    entities = [[sequences.entities_of(row) for row in named(rows)] for rows in tags]
    agree = [one == other for one, other in zip(said, right, strict=True)]
    sums = sequences.count_entities(*entities, agree).sum(0)
    for name, make in sequences.ENTITY_FIGURES.items():
        assert float(make(sums)) == pytest.approx(told[name])
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert told[f"entity_{name}"] == pytest.approx(score(named(right), named(said)))
    assert {row["label"] for row in told["by_label"]} == {"LOC", "PER"}
    assert sum(row["support"] for row in told["by_label"]) == sums[2]


def test_a_batch_at_a_time_is_the_same(tags):
    said, right = (named(rows) for rows in tags)
    metric = metrics.load("seqeval")
    for begin in range(0, len(said), 7):
        metric.add_batch(predictions=said[begin : begin + 7], references=right[begin : begin + 7])
    assert metric.compute() == metrics.load("seqeval").compute(predictions=said, references=right)


def test_nothing_found_is_nothing():
    told = metrics.load("seqeval").compute(predictions=[["O", "O"]], references=[["B-X", "O"]])
    assert (told["entity_f1"], told["entity_precision"], told["accuracy"]) == (0, 0, 0.5)


def test_sums_over_texts_give_scikit_learns_figures(tags):
    from sklearn.metrics import accuracy_score, f1_score

    counts = sequences.count_classes(*tags, classes=7)  # two never occur
    said, right = (np.concatenate(rows) for rows in tags)
    assert float(sequences.CLASS_FIGURES["accuracy"](counts.sum(0))) == pytest.approx(accuracy_score(right, said))
    expected = f1_score(right, said, average="macro")
    assert float(sequences.CLASS_FIGURES["macro_f1"](counts.sum(0))) == pytest.approx(expected)


def test_resampled_sums_are_those_of_the_drawn_texts(tags):
    counts = sequences.count_classes(*tags, classes=5)
    draws = sequences.resample(counts, 200, seed=3)
    generator = np.random.default_rng(3)
    first = counts[generator.integers(30, size=30)].sum(0)
    np.testing.assert_allclose(draws[0], first)
    figures = sequences.CLASS_FIGURES["accuracy"](draws)
    assert figures.shape == (200,)
    assert figures.min() < float(sequences.CLASS_FIGURES["accuracy"](counts.sum(0))) < figures.max()
