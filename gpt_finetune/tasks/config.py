"""What the user can say about a task's rows: plain dataclasses that import in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.supervised.config import check_path

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
ENTITIES, CLASSES = "entity_tagging", "word_tagging"
ANSWERS, CHOICES = "question_answering", "multiple_choice"
# problem -> (the figure that leads, all of them)
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    SINGLE: ("macro_f1", ("accuracy", "macro_f1", "ece")),
    MULTI: ("micro_f1", ("micro_f1", "macro_f1", "subset_accuracy")),
    REGRESSION: ("mse", ("mse", "pearson")),
    ENTITIES: ("entity_f1", ("entity_f1", "entity_precision", "entity_recall", "accuracy")),
    CLASSES: ("accuracy", ("accuracy", "macro_f1")),
    ANSWERS: ("token_f1", ("exact_match", "token_f1", "no_answer_accuracy")),
    CHOICES: ("accuracy", ("accuracy",)),
}
LOWER_IS_BETTER = ("ece", "mse")


@dataclass
class RowSourceConfig:
    """One place that rows come from.

    Args:
        path: A file (jsonl, json, csv, tsv or parquet; `.gz` may follow each but parquet), a folder, a glob,
            `hub:owner/name` for a Hub data set, or `package:name/file` for a file of a packaged data set.
        encoding: Character encoding of the files, by its Python name, e.g. `gb18030`.
        name: Configuration of the Hub data set.
        split: Split of the Hub data set.
        revision: Commit, tag or branch of the Hub data set.
    """

    path: str = ""
    encoding: str = "utf-8"
    name: str | None = None
    split: str = "train"
    revision: str | None = None

    def as_source(self, path: str | None = None) -> SourceConfig:
        """Return what the readers take.

        Args:
            path: Where the source really lies, if `path` is a name.
        """
        # lines of a plain-text file are rows; formats with columns do not look at the separator
        return SourceConfig(
            path or self.path,
            separator="\n",
            encoding=self.encoding,
            name=self.name,
            split=self.split,
            revision=self.revision,
        )

    def validate(self, prefix: str = "source") -> None:
        """Check every field.

        Args:
            prefix: Dotted key under which the user wrote this source; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        self.as_source().validate(prefix)
        check_path(self.path, prefix)


@dataclass
class TaskDataConfig:
    """Which rows to learn from, and which to hold out.

    Equal texts (Unicode forms, case and spaces apart) are on one side of the split, whatever else is set.

    Args:
        sources: Where the training rows come from.
        validation: Where the held-out rows come from. Empty: they are split off the training rows. A training row whose
            text is also held out is dropped, and counted.
        validation_fraction: Share of the distinct texts to hold out when `validation` is empty; chosen by hash.
        folds: Part the texts by hash into so many folds, and hold out the one of number `fold`; null does not.
        fold: Which fold to hold out, from 0.
        group_column: Column of what rows have in common, such as their author or the template that they were drawn
            from: rows of one group are on one side of the split, and the groups are what is chosen by hash. null: each
            text is a group of its own.
        deduplicate: Drop rows that have been seen before. Rows of one text that contradict each other are dropped in
            any case, all of them, and counted.
        max_length: Tokens of a text, or of each part that a task makes of it.
        strict: Refuse texts that are too long.
        seed: Seed of the split.
    """

    sources: list[RowSourceConfig] = field(default_factory=list)
    validation: list[RowSourceConfig] = field(default_factory=list)
    validation_fraction: float = 0.1
    folds: int | None = None
    fold: int = 0
    group_column: str | None = None
    deduplicate: bool = True
    max_length: int = 256
    strict: bool = False
    seed: int = 0

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if not self.sources:
            remedy = f"Name one source, e.g. {prefix}.sources=[{{path: rows.jsonl}}]"
            raise InputError(f"{prefix}.sources", self.sources, "there is nothing to train on", remedy)
        for key, sources in (("sources", self.sources), ("validation", self.validation)):
            for i, source in enumerate(sources):
                source.validate(f"{prefix}.{key}[{i}]")
        if not 0 < self.validation_fraction < 1:
            problem = "a share lies above 0 and below 1: without held-out rows nothing is known of the model"
            raise InputError(f"{prefix}.validation_fraction", self.validation_fraction, problem, "Give e.g. 0.1")
        if self.folds is not None:
            if self.validation:
                remedy = "Leave one of them out"
                raise InputError(f"{prefix}.folds", self.folds, "held-out rows are named by validation", remedy)
            if self.folds < 2:
                raise InputError(f"{prefix}.folds", self.folds, "there must be at least 2", "Give e.g. 5")
        if not 0 <= self.fold < (self.folds or 1):
            remedy = f"Give 0 to {self.folds - 1}" if self.folds else f"Set {prefix}.folds, or leave it out"
            raise InputError(f"{prefix}.fold", self.fold, "there is no such fold", remedy)
        for key, least in (("max_length", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{prefix}.{key}", getattr(self, key), f"it is below {least}", f"Give {least} or more")


@dataclass
class ClassifyDataConfig(TaskDataConfig):
    """Which texts with labels to learn from, and how they become rows of tokens.

    Args:
        text_column: Column of the text.
        label_column: Column of the label: a text, an integer or a boolean; a list of them for several labels; a number
            for regression.
        problem_type: What labels mean. auto: a list means several labels, anything else one.
        packing: Put several texts into a training row. They do not see each other, and each is scored by its own last
            token. Without it, each has a row, and batches are of similar length. What is longer than a row loses its
            end, and is counted.
    """

    text_column: str = "text"
    label_column: str = "label"
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    packing: bool = True

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        super().validate(prefix)
        if self.text_column == self.label_column:
            problem = "text and label cannot be one column"
            raise InputError(f"{prefix}.label_column", self.label_column, problem, "Name another")


@dataclass
class JudgeConfig:
    """What is learned for, and how sure its figures are.

    Args:
        metric: Which figure chooses the best checkpoint, and stops early: accuracy, macro_f1, ece (one label);
            micro_f1, macro_f1, subset_accuracy (several); mse, pearson (regression); entity_f1, entity_precision,
            entity_recall, accuracy (names in a text); accuracy, macro_f1 (a class for each word); exact_match,
            token_f1, no_answer_accuracy (answers in a text); accuracy (choices). null: macro_f1, micro_f1, mse,
            entity_f1, accuracy or token_f1.
        early_stopping: Stop after so many evaluations without a better figure; null never stops early. Checkpoints are
            compared whenever train.eval_steps is set, and the best one is what is saved.
        class_weights: none weighs all texts alike; balanced gives each label the same part in the training loss.
        baselines: Train the simple models beside it, too.
        resamples: Bootstrap samples behind the confidence intervals.
        errors: How many of the worst errors to show; with one label a text, with what in them spoke for which.
        merge: Write an adapter into the weights of the base at the end, where its method allows, so that transformers'
            pipelines open the folder; false leaves the adapter.
    """

    metric: str | None = None
    early_stopping: int | None = None
    class_weights: Literal["none", "balanced"] = "none"
    baselines: bool = True
    resamples: int = 1000
    errors: int = 12
    merge: bool = True

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        known = {name for _, figures in FIGURES.values() for name in figures}
        if self.metric is not None and self.metric not in known:
            raise InputError("judge.metric", self.metric, "there is no such figure", did_you_mean(self.metric, known))
        for name, least in (("early_stopping", 1), ("resamples", 100), ("errors", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"judge.{name}", value, f"it must be at least {least}", "Raise it")

    def chosen(self, problem: str) -> tuple[str, bool]:
        """Return the figure that chooses a checkpoint, and whether a greater one is better.

        Raises:
            InputError: The problem has no such figure, or classes to weigh.
        """
        leading, known = FIGURES[problem]
        name = self.metric or leading
        if name not in known:
            problem_said = f"{problem.replace('_', ' ')} has no such figure"
            raise InputError("judge.metric", name, problem_said, f"Use one of {', '.join(known)}")
        if self.class_weights != "none" and problem != SINGLE:
            remedy = "Set it to none"
            raise InputError("judge.class_weights", self.class_weights, "a text must have one label for it", remedy)
        return name, name not in LOWER_IS_BETTER
