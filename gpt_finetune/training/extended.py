"""transformers' `TrainingArguments` with what `ReliableTrainer` asks for besides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers import TrainingArguments


@dataclass
class ReliableArguments(TrainingArguments):
    """Adds some fields.

    Args:
        bad_steps: `stop` or `skip`, see `TrainConfig`.
        halve_on_out_of_memory: See `TrainConfig`.
        residual: See `TrainConfig`.
        short_attention: See `TrainConfig`.
        recompute: See `TrainConfig`.
    """

    bad_steps: str = field(default="stop", metadata={"help": "What to do with steps that are not finite: stop, skip"})
    halve_on_out_of_memory: bool = field(default=False, metadata={"help": "Run batches that do not fit in parts"})
    residual: str = field(default="float32", metadata={"help": "Residual stream under autocast: float32, bfloat16"})
    short_attention: str = field(default="fused", metadata={"help": "Attention to short rows: fused, products"})
    recompute: bool = field(default=False, metadata={"help": "Compute norms and activations again, keep none"})

    @cached_property
    def _setup_devices(self) -> torch.device:
        """Let processes meet as transformers does, which on the CPU leaves `ddp_timeout` out: half an hour it was."""
        on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
        if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # as transformers does first, too
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
        return super()._setup_devices
