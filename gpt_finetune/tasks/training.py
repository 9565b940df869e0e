"""`TaskTrainer`: what the model says of each held-out text, put together again and measured as a task measures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from gpt_finetune.data.packing import IGNORED, Row
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import JudgeConfig
from gpt_finetune.training.arguments import TrainConfig
from gpt_finetune.training.trainer import GPTTrainer

if TYPE_CHECKING:
    from gpt_finetune.tasks.classification import PreparedTask

# What the model says of each held-out row, in the order of their numbers -> figures
Measure = Callable[[list[np.ndarray]], dict[str, float]]


class TaskTrainer(GPTTrainer):
    """A `GPTTrainer` whose evaluation computes a task's figures; they do not depend on batches or processes.

    Args:
        *args: As `GPTTrainer`. Rows of `eval_dataset` bear `numbers`, under which what is said of them is kept.
        measure: Makes figures of what the model says of all held-out rows, see `said`, in the order of their numbers.
        class_weights: Weight of each label in the training loss (L,); None weighs all alike. The evaluation loss is
            never weighted.
        **kwargs: As `GPTTrainer`.
    """

    FINAL: ClassVar[dict[str, str]] = {"eval_loss": "eval_loss"}

    def __init__(self, *args: Any, measure: Measure, class_weights: np.ndarray | None = None, **kwargs: Any) -> None:
        if class_weights is not None:
            kwargs["compute_loss_func"] = WeightedLoss(class_weights)
        super().__init__(*args, **kwargs)
        self.measure = measure
        self.outputs: list[np.ndarray] = []  # of the last evaluation, one a row
        self._said: list[tuple[list[int], list[np.ndarray]]] = []
        self._logs = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as ever, but for an evaluation that is not of the step it is made at."""
        if self._logs:
            super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate one batch, and keep what the model says of it."""
        inputs = dict(inputs)
        numbers = inputs.pop("numbers").tolist()
        loss, logits, _ = super().prediction_step(model, inputs, False, *args, **kwargs)
        self._said.append((numbers, self.said(logits, inputs)))
        return loss, None, None

    def said(self, logits: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Return of each numbered row of a batch what `measure` needs of it: here its logits (L,).

        Args:
            logits: As the model returns them; several, as a tuple.
            inputs: The batch, labels among it.
        """
        return list(logits.float().cpu().numpy())

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate as ever, and measure what all processes have said."""
        self._said = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.pop(f"{metric_key_prefix}_tokens", None)  # what was counted are labels
        said = dict(pair for numbers, rows in gather_object(self._said) for pair in zip(numbers, rows, strict=True))
        self.outputs = [said[number] for number in range(len(said))]
        figures = self.measure(self.outputs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def final_figures(self) -> dict[str, float]:
        """Return the figures of the model as it is saved: the best one where checkpoints were compared.

        Its figures are logged where the last step has none yet; else they would pass for that step's.
        """
        self._logs = not self._evaluated(self.state.global_step)
        evaluation = self.evaluate()
        return self._named(evaluation) | self.measure(self.outputs) | self.summary()


class WeightedLoss:
    """The mean over texts of weight times cross-entropy, for training; without gradients, unweighted.

    Args:
        weights: Of each label (L,).
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = torch.from_numpy(weights.astype(np.float32))

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of logits (N, L) and labels (N,)."""
        logits = outputs["logits"].float()
        labels = labels.to(logits.device)
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        if torch.is_grad_enabled():
            losses = losses * self.weights.to(logits.device)[labels.clamp(min=0)]
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Return weights that give each label the same part in the loss, and texts the weight 1 in the mean.

    Args:
        labels: Of the training texts (N,).
        count: How many labels there are; one that does not occur weighs nothing.
    """
    texts = np.bincount(labels, minlength=count)
    occurs = texts > 0
    return np.where(occurs, len(labels) / (occurs.sum() * np.maximum(texts, 1)), 0.0)


def weights(data: PreparedTask, config: JudgeConfig) -> np.ndarray | None:
    """Return the weights of the labels in the training loss, if they are to have any."""
    if config.class_weights == "none":
        return None
    return balanced(data.targets["train"], len(data.labels.names))


def options(config: TrainConfig, judge: JudgeConfig, packing: bool, metric: str, greater: bool) -> dict[str, Any]:
    """Return further fields of `TrainingArguments`: how rows are drawn, and how the best checkpoint is chosen.

    Raises:
        InputError: Training is to stop early, but is never evaluated.
    """
    found: dict[str, Any] = {} if packing else {"train_sampling_strategy": "group_by_length"}
    if config.eval_steps is None:
        if judge.early_stopping is not None:
            problem = "it looks at evaluations during training, and there are none"
            raise InputError("judge.early_stopping", judge.early_stopping, problem, "Set train.eval_steps")
        return found
    found |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": greater}
    if config.save_steps is None:  # kept only to come back to the best, see `tidy`
        found |= {"save_strategy": "best", "save_only_model": True, "save_total_limit": 1}
    return found


def stoppers(config: JudgeConfig) -> list[Any]:
    """Return what stops training early, if anything is to."""
    from transformers import EarlyStoppingCallback

    return [] if config.early_stopping is None else [EarlyStoppingCallback(config.early_stopping)]


class HasRows(Protocol):
    """What `unlabelled` needs to know of a task's rows."""

    train: Any
    collate: Any


def unlabelled(data: HasRows, batch_size: int) -> Any:
    """Return the training batches without labels, as methods look at them that start from data."""

    def collate(rows: list[Row]) -> Row:
        return {name: value for name, value in data.collate(rows).items() if name != "labels"}

    return DataLoader(data.train, batch_size, collate_fn=collate)


def tidy(folder: Path, config: TrainConfig) -> None:
    """Remove the checkpoints that were kept to come back to the best; those to resume from stay."""
    for left in folder.glob("checkpoint-*") if config.save_steps is None else ():
        shutil.rmtree(left, ignore_errors=True)
