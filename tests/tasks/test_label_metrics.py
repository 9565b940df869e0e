"""Metrics of labels: scikit-learn's figures, hand counts, and how sure they are."""

from __future__ import annotations

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

from gpt_finetune.metrics import METRICS, load
from gpt_finetune.metrics.labels import LABEL_METRICS, bootstrap, interval, macro_f1, mcnemar_p, paired_p
from gpt_finetune.tasks.baselines import run_baselines
from gpt_finetune.tasks.config import MULTI, REGRESSION, SINGLE
from gpt_finetune.tasks.judging import _scorer, measure

RANDOM = np.random.default_rng(0)
RIGHT = RANDOM.integers(0, 4, 200)
FOUND = np.where(RANDOM.random(200) < 0.7, RIGHT, RANDOM.integers(0, 5, 200))


def test_all_are_metrics_of_evaluate_in_the_table():
    assert METRICS.items() >= LABEL_METRICS.items()
    for name in LABEL_METRICS:
        metric = load(name)
        assert isinstance(metric, evaluate.Metric)
        assert metric.description
    metric = load("accuracy")
    metric.add(prediction=1, reference=1)
    metric.add_batch(predictions=[0, 2], references=[0, 1])
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_one_label_is_scikit_learns():
    assert load("accuracy").compute(predictions=FOUND, references=RIGHT)["accuracy"] == accuracy_score(RIGHT, FOUND)
    found = load("label_f1").compute(predictions=FOUND, references=RIGHT)
    assert found["macro_f1"] == pytest.approx(f1_score(RIGHT, FOUND, average="macro"))
    assert macro_f1(FOUND, RIGHT) == pytest.approx(found["macro_f1"])
    row = found["by_label"][2]
    assert row["label"] == 2
    assert row["support"] == int((RIGHT == 2).sum())
    assert row["precision"] == pytest.approx(((FOUND == 2) & (RIGHT == 2)).sum() / (FOUND == 2).sum())


def test_labels_that_do_not_occur_do_not_count():
    found = load("label_f1").compute(predictions=[0, 5, 5], references=[0, 5, 0])
    assert [row["label"] for row in found["by_label"]] == [0, 5]
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert macro_f1(np.array([0, 5, 5]), np.array([0, 5, 0])) == pytest.approx(2 / 3)


def test_several_labels_are_scikit_learns():
    right, found = RANDOM.integers(0, 2, (50, 4)), RANDOM.integers(0, 2, (50, 4))
    figures = load("several_labels").compute(predictions=found, references=right)
    for name in ("micro", "macro"):
        expected = f1_score(right, found, average=name)
        assert figures[f"{name}_f1"] == pytest.approx(expected)
        assert _scorer(MULTI, f"{name}_f1")(found, right) == pytest.approx(expected)
    assert figures["subset_accuracy"] == accuracy_score(right, found)


def test_numbers_are_scikit_learns_and_scipys():
    right = RANDOM.normal(size=50)
    found = right + RANDOM.normal(size=50)
    figures = load("regression").compute(predictions=found, references=right)
    assert figures["mse"] == pytest.approx(mean_squared_error(right, found))
    assert figures["pearson"] == pytest.approx(pearsonr(right, found).statistic)
    assert load("regression").compute(predictions=[1.0, 1.0], references=[0.0, 2.0]) == {"mse": 1.0, "pearson": 0.0}


def test_calibration_by_hand():
    probabilities = [[0.95, 0.05], [0.05, 0.95], [0.6, 0.4], [0.4, 0.6]]
    found = load("calibration").compute(predictions=probabilities, references=[0, 1, 0, 0])
    assert found["ece"] == pytest.approx(0.5 * abs(0.95 - 1) + 0.5 * abs(0.6 - 0.5))
    assert [each["count"] for each in found["bins"]] == [2, 2]
    assert load("calibration").compute(predictions=[[1.0, 0.0]], references=[0])["ece"] == 0


def test_intervals_hold_what_they_should_and_repeat():
    values = bootstrap(macro_f1, FOUND, RIGHT, 300, seed=0)
    low, high = interval(values)
    assert low < macro_f1(FOUND, RIGHT) < high
    assert 0.05 < high - low < 0.25
    assert np.array_equal(values, bootstrap(macro_f1, FOUND, RIGHT, 300, seed=0))
    # of a share, the normal approximation is near
    low, high = interval(bootstrap(lambda p, r: float((p == r).mean()), FOUND, RIGHT, 2000, seed=0))
    share = float((FOUND == RIGHT).mean())
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 200) ** 0.5, rel=0.1)


def test_differences_by_chance_and_not():
    ours, theirs = np.array([True] * 10 + [False] * 2), np.array([False] * 10 + [True] * 2)
    assert mcnemar_p(ours, theirs) == pytest.approx(0.0385742, abs=1e-6)  # 2 * P(X <= 2), X of 12 coins
    assert mcnemar_p(ours, ours) == 1
    assert paired_p(np.full(999, 0.9), np.full(999, 0.8)) == pytest.approx(0.002)
    assert paired_p(np.full(99, 0.9), np.full(99, 0.9)) == 1


def test_figures_of_logits():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = measure(SINGLE, logits, np.array([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert set(found) == {"accuracy", "macro_f1", "ece"}
    found = measure(MULTI, logits - 0.5, np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    assert found["micro_f1"] == pytest.approx(2 * 3 / 7)
    assert measure(REGRESSION, logits[:, :1], np.array([[2.0], [0.0], [1.0]]))["mse"] == pytest.approx(4 / 3)


WORDS = {"good": ["great fine", "lovely"], "bad": ["awful", "poor dull"]}
CHINESE = {"good": ["这部电影很好看", "我喜欢这个"], "bad": ["这部电影难看", "讨厌这个故事"]}


@pytest.mark.parametrize("texts", [WORDS, CHINESE], ids=["words", "characters"])
def test_baselines(texts):
    train = [
        f"{'第' if texts is CHINESE else 'number'}{i} {text}" for i in range(12) for t in texts.values() for text in t
    ]
    labels = np.array([0, 0, 1, 1] * 12)[: len(train)]
    found = run_baselines(SINGLE, train + train[:4], np.concatenate([labels, [0, 0, 0, 0]]), train)
    assert (found["majority"].predictions == 0).all()
    assert (found["TF-IDF + logistic regression"].predictions == labels).mean() > 0.9
    assert found["TF-IDF + logistic regression"].seconds > 0


def test_baselines_of_several_labels_and_numbers():
    train, labels = [text for t in WORDS.values() for text in t] * 10, np.array([[1, 0], [1, 0], [0, 1], [1, 1]] * 10)
    found = run_baselines(MULTI, train, labels.astype(np.float32), train)
    assert found["majority"].predictions.tolist()[0] == [1, 0]
    assert (found["TF-IDF + logistic regression"].predictions == labels).all()
    numbers = labels[:, :1].astype(np.float32) * 3
    found = run_baselines(REGRESSION, train, numbers, train)
    assert found["mean"].predictions[0, 0] == pytest.approx(2.25)
    assert np.abs(found["TF-IDF + ridge regression"].predictions - numbers).max() < 0.2


def test_texts_without_words_leave_the_majority():
    found = run_baselines(SINGLE, ["!", "?", "!!"], np.array([1, 1, 0]), ["?"])
    assert found["TF-IDF + logistic regression"].predictions.tolist() == [1]
