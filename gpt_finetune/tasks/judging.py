"""How good a classifier is, how sure that is, and what its report shows: figures, intervals, tests, worst errors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gpt_finetune import metrics
from gpt_finetune.metrics import labels as scores
from gpt_finetune.tasks.baselines import Baseline
from gpt_finetune.tasks.config import FIGURES, MULTI, REGRESSION, SINGLE, JudgeConfig, TaskDataConfig
from gpt_finetune.tasks.fold_tests import OURS, write_by_text
from gpt_finetune.tasks.labels import softmax

if TYPE_CHECKING:
    from gpt_finetune.tasks.classification import PreparedTask
    from gpt_finetune.tasks.ledger import TaskLedger

MOST_CLASSES = 60  # that a confusion matrix shows
LENGTH_BINS = 24
LOSS_UNITS = {SINGLE: "nats per text", MULTI: "nats per label", REGRESSION: "squared error"}


@dataclass(frozen=True)
class Outcome:
    """What is known of a model beside its figures.

    Args:
        baselines: Figures of others, by name.
        section: `task` of the run's receipt, from which the report draws.
        by_text: What the leading figure of each system is made of, see `fold_tests`.
    """

    baselines: dict[str, dict[str, float]]
    section: dict[str, Any]
    by_text: dict[str, np.ndarray] = field(default_factory=dict)

    def receipt(self, data: TaskDataConfig) -> dict[str, Any]:
        """Return what the run's receipt says of it; that of a fold says what the test over all folds needs."""
        kept = {"by_text": write_by_text(self.by_text)} if data.folds is not None and self.by_text else {}
        return {"baselines": self.baselines, "task": {**self.section, **kept}}


def decide(problem: str, logits: np.ndarray) -> np.ndarray:
    """Return labels as they are encoded, from logits (N, L): the likeliest, all of even odds, or the numbers."""
    if problem == SINGLE:
        return logits.argmax(-1)
    return logits if problem == REGRESSION else (logits >= 0).astype(np.float32)


def measure(problem: str, logits: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return the figures that `FIGURES` names of logits (N, L)."""
    found = _compare(problem, decide(problem, logits), references)
    if problem == SINGLE:
        found["ece"] = _calibration(logits, references)["ece"]
    return {name: found[name] for name in FIGURES[problem][1]}


def _compare(problem: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Return figures of decided labels, with those of each label as `by_label`."""
    used = {SINGLE: ("accuracy", "label_f1"), MULTI: ("several_labels",), REGRESSION: ("regression",)}[problem]
    kind = np.float64 if problem == REGRESSION else np.int64
    pairs = [side.astype(kind) for side in (predictions, references)]
    if problem == REGRESSION:
        pairs = [side.reshape(-1) for side in pairs]
    found: dict[str, Any] = {}
    for name in used:
        found |= metrics.load(name).compute(predictions=pairs[0].tolist(), references=pairs[1].tolist())
    return found


def _calibration(logits: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    probabilities = softmax(logits.astype(np.float64)).tolist()
    return metrics.load("calibration").compute(predictions=probabilities, references=references.tolist())


def judge(
    data: PreparedTask, said: Sequence[np.ndarray], baselines: Mapping[str, Baseline], config: JudgeConfig
) -> Outcome:
    """Measure a model beside its baselines, and say how sure that is.

    Args:
        data: The rows.
        said: Logits of the held-out texts, N times (L,).
        baselines: What others say, by name.
        config: The section.

    Returns:
        Figures of the baselines, and the report's section.
    """
    problem, right, logits = data.labels.problem, data.targets["validation"], np.stack(said)
    ours = decide(problem, logits)
    leading = FIGURES[problem][0]
    draws = {
        name: scores.bootstrap(_scorer(problem, name), ours, right, config.resamples, seed=0)
        for name in FIGURES[problem][1]
        if name != "ece"
    }
    told: dict[str, dict[str, float]] = {}
    tests: dict[str, dict[str, Any]] = {}
    by_text = {OURS: _by_text(problem, ours, right)}
    for name, baseline in baselines.items():
        by_text[name] = _by_text(problem, baseline.predictions, right)
        compared = _compare(problem, baseline.predictions, right)
        shared = {key: compared[key] for key in draws}
        told[name] = {**shared, "seconds": round(baseline.seconds, 3)}
        if problem == SINGLE:
            test, p = "McNemar's exact test", scores.mcnemar_p(ours == right, baseline.predictions == right)
        else:
            theirs = scores.bootstrap(_scorer(problem, leading), baseline.predictions, right, config.resamples, seed=0)
            test, p = f"paired bootstrap of {leading}", scores.paired_p(draws[leading], theirs)
        tests[name] = {**told[name], "test": test, "p": p}
    detail = _compare(problem, ours, right)
    section: dict[str, Any] = {
        "name": "classification",
        "problem_type": problem,
        "labels": list(data.labels.names),
        "loss_unit": LOSS_UNITS[problem],
        "intervals": {name: scores.interval(values) for name, values in draws.items()},
        "resamples": config.resamples,
        "baselines": tests,
        "by_label": [row | {"label": data.labels.names[row["label"]]} for row in detail.get("by_label", [])],
        "lengths": lengths(data),
        "errors": _errors(data, logits, ours, config.errors),
    }
    if problem == SINGLE:
        section["calibration"] = _calibration(logits, right)["bins"]
        if (count := len(data.labels.names)) <= MOST_CLASSES:
            pairs = np.bincount(right * count + ours, minlength=count * count)
            section["confusion"] = pairs.reshape(count, count).tolist()
    return Outcome(told, section, by_text)


def _by_text(problem: str, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return part and whole of each text (N, 2): of accuracy, micro F1 or squared error."""
    if problem == SINGLE:
        part, whole = predictions == references, np.ones(len(references))
    elif problem == MULTI:
        part, whole = 2 * (predictions * references).sum(-1), (predictions + references).sum(-1)
    else:
        errors = ((predictions - references) ** 2).reshape(len(references), -1)
        part, whole = errors.sum(-1), np.full(len(references), errors.shape[-1])
    return np.stack((part, whole), axis=-1).astype(np.float64)


def _scorer(problem: str, name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the figure as a function that is cheap enough to be asked a thousand times."""

    def several(predictions: np.ndarray, references: np.ndarray, *, each: bool) -> float:
        axis = 0 if each else None
        both = (predictions * references).sum(axis)
        total = predictions.sum(axis) + references.sum(axis)
        return float(np.mean(2 * both / np.maximum(total, 1)))

    table: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "accuracy": lambda p, r: float((p == r).mean()),
        "macro_f1": scores.macro_f1 if problem == SINGLE else lambda p, r: several(p, r, each=True),
        "micro_f1": lambda p, r: several(p, r, each=False),
        "subset_accuracy": lambda p, r: float((p == r).all(-1).mean()),
        "mse": lambda p, r: float(((p - r) ** 2).mean()),
        "pearson": lambda p, r: float(np.corrcoef(p[:, 0], r[:, 0])[0, 1]) if p.std() * r.std() > 0 else 0.0,
    }
    return table[name]


class HasLengths(Protocol):
    """What `lengths` needs to know of a task's rows."""

    lengths: dict[str, list[int]]
    ledger: TaskLedger
    collate: Any  # has the `width` of a row


def lengths(data: HasLengths) -> dict[str, Any]:
    """Count the texts by their tokens, cut ones as they were."""
    every = [size for sizes in data.lengths.values() for size in sizes]
    edges = np.unique(np.linspace(0, max(every) + 1, LENGTH_BINS + 1).round().astype(int))
    counts = {side: np.histogram(sizes, edges)[0].tolist() for side, sizes in data.lengths.items()}
    cut = data.ledger.truncated_examples
    return {
        "edges": edges.tolist(),
        **counts,
        "max_length": data.collate.width,
        "truncated": cut,
        "median": statistics.median(every),
    }


def _errors(data: PreparedTask, logits: np.ndarray, ours: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Return the held-out texts that the model gets most wrong, by their loss, the worst first."""
    problem, right = data.labels.problem, data.targets["validation"]
    if problem == SINGLE:
        shifted = logits - logits.max(-1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(right)), right]
        wrong = ours != right
    else:
        errors = (logits - right) ** 2 if problem == REGRESSION else np.logaddexp(0, logits) - logits * right
        loss = errors.sum(-1)
        wrong = np.ones(len(right), bool) if problem == REGRESSION else (ours != right).any(-1)
    order = [int(i) for i in np.argsort(-loss, kind="stable") if wrong[i]][:count]
    return [
        {
            "text": data.texts["validation"][i].text,
            "label": data.labels.named(right[i]),
            "predicted": data.labels.named(ours[i]),
            "loss": round(float(loss[i]), 4),
        }
        for i in order
    ]
