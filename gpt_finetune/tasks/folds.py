"""Cross-validation in one command: a run for each fold in a folder of its own, and one page over all of them.

Every text is held out once, so that the pooled confusion matrix counts all of them, and tests against baselines compare
on all of them (`fold_tests`). The standard deviation is that between folds (n - 1); folds share training texts, so it
is no standard error of the mean.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpt_finetune.checkpoints import find_whole
from gpt_finetune.config import to_yaml
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import FIGURES, SINGLE
from gpt_finetune.tasks.fold_tests import compare_pooled, measure_pooled
from gpt_finetune.training.run import OF_ONE_COMMAND, RECEIPT, Run

log = logging.getLogger(__name__)

_NOT_THE_RUN = ("output_dir", *OF_ONE_COMMAND)  # fields that may differ when a run goes on


class FoldsRun(Run):
    """The folder that holds the folds; to resume it needs no checkpoint of its own.

    Args:
        recipe: Name of the recipe.
        config: The recipe's configuration, with `folds`.

    Raises:
        InputError: As `Run`; or the folder holds folds of another configuration.
    """

    def __init__(self, recipe: str, config: Any) -> None:
        self._config, self._resumed = config, config.resume
        if config.resume and config.overwrite:
            raise InputError("resume", True, "overwrite=true is given too", "Give one of them")
        super().__init__(config.output_dir, recipe, config, overwrite=config.overwrite)

    def _claim(self, resume: bool, overwrite: bool) -> None:
        super()._claim(self._resumed, overwrite)
        if not self._resumed:
            return
        try:
            before = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            before = None
        now = yaml.safe_load(to_yaml(self._config))
        known = before if isinstance(before, dict) else {}
        differing = [name for name in now if name not in _NOT_THE_RUN and known.get(name) != now[name]]
        if differing:
            problem = f"the folds in {self.folder} have another configuration: {', '.join(differing)} differ"
            raise InputError("resume", True, problem, "Give the configuration that they began with, or --overwrite")


def train_folds(
    config: Any,
    recipe: str,
    train: Callable[[Any], Mapping[str, float]],
    texts: Callable[[Any], Iterable[str]],
) -> dict[str, float]:
    """Train one model a fold, each in `fold-<number>` of the output folder; gather what their receipts say.

    With `resume`, finished folds stay as they are, one that has a whole checkpoint goes on from it, and the others
    begin anew.

    Args:
        config: The recipe's configuration, with `folds`.
        recipe: Name of the recipe.
        train: Its `main`, for a configuration without `folds`.
        texts: Yields the texts to train on of a `data` section.

    Returns:
        The mean of each figure over the folds.

    Raises:
        InputError: Folds cannot be made, before any is trained.
    """
    parts = split(config)
    for part in parts:
        next(iter(texts(part.data)))
    with FoldsRun(recipe, config) as launched:
        begin = time.perf_counter()
        for number, part in enumerate(parts):
            folder = Path(part.output_dir)
            if _read(folder).get("status") == "finished":
                log.info("fold %d of %d is finished: %s", number + 1, len(parts), folder)
                continue
            log.info("fold %d of %d: %s", number + 1, len(parts), folder)
            train(_prepared(part, folder))
        receipts = [_read(Path(part.output_dir)) for part in parts]
        launched.receipt |= pool(receipts, [Path(part.output_dir).name for part in parts])
        launched.receipt |= {
            "status": "finished",
            "duration_s": round(sum(float(each.get("duration_s") or 0) for each in receipts), 1),
        }
        launched.save_receipt()
        from gpt_finetune.report import write_report

        page = write_report(launched.folder)
        log.info("%d folds in %.0f s; see %s", len(parts), time.perf_counter() - begin, page)
    return dict(launched.receipt["figures"])


def split(config: Any) -> list[Any]:
    """Return the configuration of each fold.

    Raises:
        InputError: `folds` cannot be used, or not beside what else is set.
    """
    count, data = config.folds, config.data
    if count < 2:
        raise InputError("folds", count, "there must be at least 2", "Give e.g. 5")
    if data.folds is not None:
        remedy = "Leave data.folds and data.fold out to train all folds, or folds to train one"
        raise InputError("folds", count, f"data.folds={data.folds} asks for one fold", remedy)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "Start it with python, or launch each fold by itself with data.folds and data.fold"
        raise InputError("folds", count, "the folds of one command are trained in one process", remedy)
    folds = [dataclasses.replace(data, folds=count, fold=number) for number in range(count)]
    for each in folds:
        each.validate()
    return [
        dataclasses.replace(config, folds=None, data=each, output_dir=str(Path(config.output_dir) / f"fold-{number}"))
        for number, each in enumerate(folds)
    ]


def pool(receipts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return of the receipts of all folds what the receipt over them says: figures, baselines, data and task.

    Args:
        receipts: Of the finished runs.
        names: Of their folders.
    """
    tasks = [receipt["task"] for receipt in receipts]
    problem = tasks[0]["problem_type"]
    keys = [*FIGURES[problem][1], "eval_loss"]
    spread = {key: _spread([receipt["figures"][key] for receipt in receipts]) for key in keys}
    shared = set.intersection(*(set(receipt.get("baselines") or {}) for receipt in receipts))
    baselines = {
        name: {
            key: float(np.mean([receipt["baselines"][name][key] for receipt in receipts]))
            for key in receipts[0]["baselines"][name]
        }
        for name in receipts[0].get("baselines") or {}
        if name in shared
    }
    tests = compare_pooled(tasks, problem, FIGURES[problem][0])
    task: dict[str, Any] = {
        "name": f"{tasks[0]['name']}, cross-validated",
        "problem_type": problem,
        "labels": tasks[0].get("labels"),
        "leading": FIGURES[problem][0],
        "loss_unit": tasks[0].get("loss_unit"),
        "baselines": {name: told | tests.get(name, {}) for name, told in baselines.items()},
        "folds": {"names": list(names), "figures": spread},
    }
    alike = all(each.get("labels") == tasks[0].get("labels") for each in tasks)
    counts = None
    if alike and all(each.get("confusion") for each in tasks):
        counts = np.sum([each["confusion"] for each in tasks], axis=0)
        task["confusion"] = counts.tolist()
        if problem == SINGLE:
            task["by_label"] = by_label(counts, tasks[0]["labels"])
    task["intervals"] = measure_pooled(tasks, problem, FIGURES[problem][0], counts if problem == SINGLE else None)
    data = [receipt.get("data") or {} for receipt in receipts]
    return {
        "model": receipts[0].get("model") or {},
        "environment": receipts[0].get("environment") or {},
        "data": {
            "sources": data[0].get("sources") or [],
            "validation_bytes": sum(int(each.get("validation_bytes") or 0) for each in data),
        },
        "baselines": baselines,
        "task": task,
        "figures": {key: told["mean"] for key, told in spread.items()},
    }


def by_label(counts: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and support of each label that occurs or is predicted.

    Args:
        counts: Texts by right label and predicted one (L, L).
        labels: Their names.
    """
    hits, said, right = np.diag(counts).astype(float), counts.sum(0), counts.sum(1)
    return [
        {
            "label": label,
            "precision": hits[i] / max(1, int(said[i])),
            "recall": hits[i] / max(1, int(right[i])),
            "f1": 2 * hits[i] / (said[i] + right[i]),
            "support": int(right[i]),
        }
        for i, label in enumerate(labels)
        if said[i] + right[i]
    ]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "values": list(map(float, values))}


def _prepared(part: Any, folder: Path) -> Any:
    """Return a fold's configuration for what its folder holds: to go on from a whole checkpoint, or to begin anew."""
    if not (folder / RECEIPT).is_file():
        if folder.exists():  # killed before it had a receipt
            shutil.rmtree(folder)
        return dataclasses.replace(part, resume=False, overwrite=False)
    going_on = find_whole(folder)[0] is not None
    return dataclasses.replace(part, resume=going_on, overwrite=not going_on)


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
