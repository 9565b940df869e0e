"""Is a model better than its baselines over all folds? Every text is held out once, and they are compared on all.

The figure that leads each task is a sum of parts over a sum of wholes: right texts over texts, or twice the names that
are right over those said and those there. Each fold keeps both of every text and system in its receipt; here they are
put together and tested. Models of different folds share training texts, which such tests leave out of account.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics.sequences import resample
from gpt_finetune.tasks.config import CHOICES, SINGLE

OURS = "ours"


def write_by_text(by_text: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write down what each system's figure is made of, text by text: `3/5 0/1`.

    Args:
        by_text: Name -> part and whole of each text (N, 2).
    """
    return {
        name: " ".join(f"{part:.9g}/{whole:.9g}" for part, whole in counts.tolist()) for name, counts in by_text.items()
    }


def read_by_text(written: str) -> np.ndarray:
    """Return what `write_by_text` wrote down of a system: (N, 2)."""
    return np.array([pair.split("/") for pair in written.split()], np.float64).reshape(-1, 2)


def compare_pooled(tasks: Sequence[Mapping[str, Any]], problem: str, leading: str) -> dict[str, dict[str, Any]]:
    """Test over the texts of all folds whether the model and each baseline differ.

    McNemar's exact test where texts have one label or one right choice; else a paired bootstrap of the figure that
    leads.

    Args:
        tasks: The task's section of each fold's receipt.
        problem: What the labels mean.
        leading: Name of the figure that leads.

    Returns:
        Name of a baseline -> `test`, `p` and `pooled_n`, the number of texts; nothing where a fold does not say.
    """
    kept = [task.get("by_text") or {} for task in tasks]
    shared = set.intersection(*map(set, kept))
    if OURS not in shared:
        return {}
    pooled = {name: np.concatenate([read_by_text(each[name]) for each in kept]) for name in sorted(shared)}
    ours = pooled.pop(OURS)
    if problem in (SINGLE, CHOICES):
        test = "McNemar's exact test over the texts of all folds"
        values = {name: scores.mcnemar_p(ours[:, 0] > 0, theirs[:, 0] > 0) for name, theirs in pooled.items()}
    else:
        test = f"paired bootstrap of {leading} over the texts of all folds"
        samples = max(int(task.get("resamples") or 1000) for task in tasks)
        draws = _draws(ours, samples)
        values = {name: scores.paired_p(draws, _draws(theirs, samples)) for name, theirs in pooled.items()}
    return {name: {"test": test, "p": p, "pooled_n": len(ours)} for name, p in values.items()}


def measure_pooled(
    tasks: Sequence[Mapping[str, Any]], problem: str, leading: str, confusion: np.ndarray | None = None
) -> dict[str, tuple[float, float]]:
    """Say how sure figures over the texts of all folds are, by bootstrap.

    Args:
        tasks: The task's section of each fold's receipt.
        problem: What the labels mean.
        leading: Name of the figure that leads.
        confusion: Texts of all folds by right label and predicted one (L, L), where each has one.

    Returns:
        Figure -> ends of its 95% interval: what parts and wholes make up, and macro F1 from the confusion matrix.
    """
    samples = max(int(task.get("resamples") or 1000) for task in tasks)
    found = {}
    kept = [written for task in tasks if (written := (task.get("by_text") or {}).get(OURS))]
    if len(kept) == len(tasks):
        name = "accuracy" if problem == SINGLE else leading
        found[name] = scores.interval(_draws(np.concatenate([read_by_text(each) for each in kept]), samples))
    if confusion is not None:
        right, said = (np.repeat(side.ravel(), confusion.ravel()) for side in np.indices(confusion.shape))
        found["macro_f1"] = scores.interval(scores.bootstrap(scores.macro_f1, said, right, samples, seed=0))
    return found


def _draws(counts: np.ndarray, samples: int) -> np.ndarray:
    """Return the figure of texts drawn with replacement, on equal draws for equal numbers of texts."""
    sums = resample(counts, samples, seed=0)
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))
