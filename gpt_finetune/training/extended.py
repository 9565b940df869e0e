"""transformers' `TrainingArguments` with what `ReliableTrainer` asks for besides."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class ReliableArguments(TrainingArguments):
    """Adds one field.

    Args:
        bad_steps: `stop` or `skip`, see `TrainConfig`.
    """

    bad_steps: str = field(default="stop", metadata={"help": "What to do with steps that are not finite: stop, skip"})
