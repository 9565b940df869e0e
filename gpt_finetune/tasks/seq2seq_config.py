"""What the user can say about pairs of texts, and about what is written of them: plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import TaskDataConfig
from gpt_finetune.training.arguments import AnswerConfig, TrainConfig


@dataclass
class Seq2SeqDataConfig(TaskDataConfig):
    """Which pairs of texts to learn from. Of several targets of one source, the first counts; the others are dropped.

    Args:
        source_column: Column of what is read.
        target_column: Column of what is to be written.
        max_source_length: Tokens of a source; null means max_length. A longer one loses its end, and is counted.
        max_target_length: Tokens of a target, its end token among them; null means max_length. A longer one loses its
            end, and with it the end token: the model does not learn to stop there.
    """

    source_column: str = "source"
    target_column: str = "target"
    max_source_length: int | None = None
    max_target_length: int | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a source, and of a target, at most."""
        return self.max_source_length or self.max_length, self.max_target_length or self.max_length

    def validate(self, prefix: str = "data") -> None:
        """Check every field, sources included; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this config; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        super().validate(prefix)
        for key, least in (("max_source_length", 1), ("max_target_length", 2)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise InputError(f"{prefix}.{key}", value, f"it is below {least}", f"Give {least} or more")
        if self.source_column == self.target_column:
            problem = "source and target cannot be one column"
            raise InputError(f"{prefix}.target_column", self.target_column, problem, "Name another")


@dataclass
class AlignConfig:
    """Whether one head of the decoder's cross-attention is told where to look while it learns.

    Which source token a target token translates is counted over the training pairs (IBM model 1). From scratch on few
    pairs it saves most of the steps; a text that says something else than its source is nothing to count.

    Args:
        weight: Of the head's cross-entropy beside the loss; 0 leaves it out, 1 is usual. It is logged by itself, as
            `align_loss`.
        layer: Whose first head, from 0; null means that of the last layer but one.
    """

    weight: float = 0.0
    layer: int | None = None

    def layer_of(self, layers: int) -> int:
        """Return which of a decoder's layers it is."""
        return max(0, layers - 2) if self.layer is None else self.layer

    def validate(self, layers: int, train: TrainConfig) -> None:
        """Check every field; costs nothing.

        Args:
            layers: Of the decoder.
            train: The training section.

        Raises:
            InputError: A field cannot be used.
        """
        if self.weight < 0:
            raise InputError("align.weight", self.weight, "it is below 0", "Give 0 or more")
        if self.layer is not None and not 0 <= self.layer < layers:
            remedy = f"Give one from 0 to {layers - 1}, or null"
            raise InputError("align.layer", self.layer, f"the decoder has {layers} layers", remedy)
        for name in ("gradient_checkpointing", "compile") if self.weight else ():
            if getattr(train, name):
                problem = "it hides where the head looks from align.weight"
                raise InputError(f"train.{name}", True, problem, "Leave out one of the two")


@dataclass
class WriteConfig(AnswerConfig):
    """What is written of held-out sources at each evaluation, and at the end.

    Args:
        max_prompts: Of how many held-out sources to write, taken at even distances; 0 writes none.
        max_new_tokens: Longest text, in tokens; null means data.max_target_length.
        batch_size: Sources read at once; does not change the figures.
        shown: How many of them to keep in answers.jsonl, of each evaluation, at even distances.
        num_beams: How many texts to follow at a time; 1 takes the likeliest token each time.
    """

    max_prompts: int = 1000
    max_new_tokens: int | None = None  # type: ignore[assignment]  # the recipe fills it in
    batch_size: int = 64
    num_beams: int = 1

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        least_of = {"max_prompts": 0, "max_new_tokens": 1, "batch_size": 1, "shown": 0, "num_beams": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"write.{name}", value, f"it must be at least {least}", "Raise it")
